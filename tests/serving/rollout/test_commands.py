"""The commands `promote`, `canary`, `rollback` and `models` as processes, on this machine and in a cluster."""

import os
import signal
import subprocess

import psutil
import pytest

from serving.registry import Registry
from tests.running import CATBREEDS, catbreeds
from tests.serving.model_server.servers import DEADLINE, eventually
from tests.serving.rollout.kubernetes_api import NAMESPACE

MODEL = "commands"


@pytest.fixture
def registry(tmp_path, models) -> Registry:
    """Versions 1 (stable), 2 and 3, which cannot be loaded."""
    registry = Registry(tmp_path / "work" / "serving" / MODEL)
    for name in ("1", "2", "4"):
        registry.push(models / name, {})
    return registry


@pytest.fixture
def run(registry):
    """Run a command with the workdir and the model name; `fleet_options` select a cluster."""

    def run(*arguments: object, fleet_options: tuple[str, ...] = ()):
        options = ("--workdir", registry.base.parent.parent, "--set", f"model_name={MODEL}")
        return catbreeds(*arguments, *options, *fleet_options)

    return run


def test_commands_control_the_servers_of_this_machine(run, registry, announce):
    assert "no server is running" in run("promote", 1).stdout  # only the registry changes
    (server,) = announce(1)
    done = run("promote", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "version 2 is stable (was version 1)\nloaded on 1 server\n"
    assert server.added(MODEL, "stable") == 2
    done = run("rollback")
    assert done.stdout == "version 1 is stable again (was version 2)\nloaded on 1 server\n"
    assert server.added(MODEL, "stable") == 1
    done = run("promote", 2, "--canary", "--share", "0.2")
    assert done.stdout.splitlines() == [
        "version 2 is the canary and gets 20% of the gateways' requests",
        "the version has no golden requests",
        "loaded on 1 server",
    ]
    assert server.added(MODEL, "canary") == 2
    assert "version 2 canary" in run("models").stdout
    done = run("canary", "--timeout", 0)
    assert (done.returncode, "no gateway is running" in done.stderr) == (1, True)
    assert run("canary", "--stop").stdout == "canary stopped: version 2\nupdated 1 server\n"
    assert "was canary: stopped by hand" in run("models").stdout
    done = run("promote", 3)
    assert (done.returncode, "cannot load version 3" in done.stderr) == (1, True)
    assert registry.labels() == {"stable": 1}


def test_commands_control_the_pods_of_a_cluster_and_print_errors_as_one_line(run, api, registry, model_servers):
    api.add_pod("model-server-0", model_servers[0].port)
    options = ("--namespace", NAMESPACE, "--context", "fake", "--set", f"rollout.models_dir={registry.base.parent}")
    done = run("promote", 2, fleet_options=options)
    assert done.stdout == "version 2 is stable (was version 1)\nloaded on 1 server\n", done.stderr
    assert model_servers[0].added(MODEL, "stable") == 2
    assert api.config_map["metadata"]["name"] == "model-config"
    done = run("rollback", fleet_options=options)
    assert done.stdout.startswith("version 1 is stable again")
    done = run("rollback", fleet_options=options)
    assert (done.returncode, "no version was stable before" in done.stderr) == (2, True)
    done = run("promote", 2, fleet_options=("--namespace", NAMESPACE, "--context", "nowhere"))
    assert (done.returncode, done.stderr.count("\n"), "nowhere" in done.stderr) == (1, 1, True)
    assert run("promote", 2, fleet_options=("--context", "fake")).returncode == 2
    api.close()
    done = run("promote", 2, fleet_options=options)
    assert (done.returncode, done.stderr.count("\n"), "does not respond" in done.stderr) == (1, 1, True)


def test_an_error_names_the_file_that_cannot_be_written(run, registry):
    lock = registry.base.parent.parent / "serve" / ".lock"
    lock.mkdir(parents=True)
    done = run("promote", 2)
    assert (done.returncode, done.stderr) == (1, f"catbreeds: {lock}: cannot be written: Is a directory\n")
    (registry.base / ".lock").unlink()
    (registry.base / ".lock").mkdir()
    lock.rmdir()
    done = run("promote", 2)
    assert done.returncode == 2
    assert done.stderr == f"catbreeds: {registry.base / '.lock'}: cannot be written: Is a directory\n"


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_terminated_command_leaves_no_port_forwarding_process_behind(api, registry, tmp_path, signal_number, code):
    api.add_pod("model-server-0", 1)
    (tmp_path / "bin" / "model-server-0").write_text("dead node")
    options = ("--workdir", registry.base.parent.parent, "--set", f"model_name={MODEL}", "--namespace", NAMESPACE)
    command = subprocess.Popen([CATBREEDS, "promote", "2", *options], env=os.environ, stderr=subprocess.PIPE, text=True)
    pid_file = tmp_path / "bin" / "processes"
    eventually(lambda: pid_file.is_file() and pid_file.read_text().endswith("\n"))
    command.send_signal(signal_number)
    _, errors = command.communicate(timeout=DEADLINE)
    assert command.returncode == code
    if signal_number == signal.SIGTERM:
        assert errors == "catbreeds: interrupted; rerun the command to finish\n"
    eventually(lambda: not any(_is_running(int(line)) for line in pid_file.read_text().split()))


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
