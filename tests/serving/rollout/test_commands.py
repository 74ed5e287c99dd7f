"""`catbreeds promote`, `canary`, `rollback` and `models` as people type them, on this machine and in a cluster."""

import os
import signal
import subprocess

import psutil
import pytest

from serving.registry import Registry
from tests.running import CATBREEDS, catbreeds
from tests.serving.model_server.servers import DEADLINE, eventually
from tests.serving.rollout.kubernetes_api import NAMESPACE

MODEL = "typed"


@pytest.fixture
def registry(tmp_path, models) -> Registry:
    """1 is stable, 2 waits, 3 cannot be loaded."""
    registry = Registry(tmp_path / "work" / "serving" / MODEL)
    for name in ("1", "2", "4"):
        registry.push(models / name, {})
    return registry


@pytest.fixture
def typed(registry):
    """Runs a command with the options that say where."""

    def typed(*arguments: object, where: tuple[str, ...] = ()):
        options = ("--workdir", registry.base.parent.parent, "--set", f"model_name={MODEL}")
        return catbreeds(*arguments, *options, *where)

    return typed


def test_on_this_machine_servers_follow_what_is_typed(typed, registry, laptop, join):
    assert "no server is running" in typed("promote", 1).stdout  # there is none yet, and the registry is enough
    (server,) = join(1)
    done = typed("promote", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "version 2 is stable and replaces version 1\nloaded on 1 server\n"
    assert server.added(MODEL, "stable") == 2
    done = typed("rollback")
    assert done.stdout == "version 1 is stable again and replaces version 2\nloaded on 1 server\n"
    assert server.added(MODEL, "stable") == 1
    done = typed("promote", 2, "--canary", "--share", "0.2")
    assert done.stdout.splitlines() == [
        "version 2 is canary and receives 20% of the gateways' requests",
        "it has no golden requests",
        "loaded on 1 server",
    ]
    assert server.added(MODEL, "canary") == 2
    assert "version 2 canary" in typed("models").stdout
    done = typed("canary", "--wait", 0)
    assert (done.returncode, "no gateway is running" in done.stderr) == (1, True)
    assert typed("canary", "--stop").stdout == "version 2: canary stopped\nupdated 1 server\n"
    assert "was canary: stopped by hand" in typed("models").stdout
    done = typed("promote", 3)
    assert (done.returncode, "cannot load version 3" in done.stderr) == (1, True)
    assert registry.labels() == {"stable": 1}


def test_in_a_cluster_its_pods_follow_and_what_is_wrong_is_a_sentence(typed, api, registry, processes):
    api.add_pod("model-server-0", processes[0].port)
    where = ("--namespace", NAMESPACE, "--context", "double", "--set", f"rollout.models={registry.base.parent}")
    done = typed("promote", 2, where=where)
    assert done.stdout == "version 2 is stable and replaces version 1\nloaded on 1 server\n", done.stderr
    assert processes[0].added(MODEL, "stable") == 2
    assert api.config_map["metadata"]["name"] == "model-config"
    done = typed("rollback", where=where)
    assert done.stdout.startswith("version 1 is stable again")
    done = typed("rollback", where=where)
    assert (done.returncode, "no version was stable before" in done.stderr) == (2, True)
    done = typed("promote", 2, where=("--namespace", NAMESPACE, "--context", "nowhere"))
    assert (done.returncode, done.stderr.count("\n"), "nowhere" in done.stderr) == (1, 1, True)
    assert typed("promote", 2, where=("--context", "double")).returncode == 2
    api.close()
    done = typed("promote", 2, where=where)
    assert (done.returncode, done.stderr.count("\n"), "does not respond" in done.stderr) == (1, 1, True)


def test_a_workdir_that_cannot_be_written_is_named_in_a_sentence(typed, registry):
    lock = registry.base.parent.parent / "serve" / ".lock"
    lock.mkdir(parents=True)
    done = typed("promote", 2)
    assert (done.returncode, done.stderr) == (1, f"catbreeds: {lock}: cannot be written: Is a directory\n")
    (registry.base / ".lock").unlink()
    (registry.base / ".lock").mkdir()
    lock.rmdir()
    done = typed("promote", 2)
    assert done.returncode == 2
    assert done.stderr == f"catbreeds: {registry.base / '.lock'}: cannot be written: Is a directory\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_leaves_no_forwarded_port_behind(api, registry, tmp_path, number, code):
    api.add_pod("model-server-0", 1)
    (tmp_path / "bin" / "model-server-0").write_text("dead node")
    options = ("--workdir", registry.base.parent.parent, "--set", f"model_name={MODEL}", "--namespace", NAMESPACE)
    command = subprocess.Popen([CATBREEDS, "promote", "2", *options], env=os.environ, stderr=subprocess.PIPE, text=True)
    processes = tmp_path / "bin" / "processes"
    eventually(lambda: processes.is_file() and processes.read_text().endswith("\n"))
    command.send_signal(number)
    _, errors = command.communicate(timeout=DEADLINE)
    assert command.returncode == code
    if number == signal.SIGTERM:
        assert errors == "catbreeds: interrupted; run the same command again to finish\n"
    eventually(lambda: not any(_runs(int(line)) for line in processes.read_text().split()))


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
