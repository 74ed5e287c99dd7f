"""`catbreeds doctor`: each thing that a machine may lack has its line, and what stops a run its exit code."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from pipeline.environment_checks import _available_memory
from pipeline.settings import ROOT
from tests.pipeline.flaky_server import serving, status
from tests.running import CATBREEDS, catbreeds, on_terminal

# What the test machine has, or may have by chance, is switched off.
ALONE = {
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "",
    "no_proxy": "",
    "KUBECONFIG": "/dev/null",
    "KF_PIPELINES_ENDPOINT": "",
}
DEMO = ("--profile", "demo")


def doctor(*options: object, cwd: Path | None = None, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and what was found: name -> finding."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_")}
    command = [str(CATBREEDS), "doctor", "--json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=kept | ALONE | variables, check=False)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["can_run"] == (done.returncode == 0)
    return done.returncode, {finding["name"]: finding for finding in document["findings"]}


@pytest.fixture
def other_tree(tmp_path, monkeypatch):
    """A copy of the code, and locks of its own."""
    for room in ("pipeline", "components", "serving"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "requirements").mkdir()
    for lock in ("pipeline.lock", "dev.lock"):
        shutil.copy(ROOT / "requirements" / lock, tmp_path / "requirements" / lock)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("programs", [os.environ["PATH"], "/none"])
def test_where_all_is_well_a_run_can_work_and_what_only_some_need_is_optional(tmp_path, programs):
    code, found = doctor(*DEMO, "--workdir", tmp_path, PATH=programs)
    assert code == 0
    for name in ("Python", "packages", "TFX's imports", "memory", "disk", "weights"):
        assert found[name]["state"] in ("ok", "warning"), found[name]
    assert found["kubectl"]["state"] == found["Kubeflow"]["state"] == "optional"
    for finding in found.values():
        assert (finding["advice"] != "") == (finding["state"] != "ok") or finding["name"] == "model server", finding


def test_a_missing_package_stops_a_run_and_another_version_is_a_warning(other_tree):
    lock = other_tree / "requirements" / "pipeline.lock"
    lock.write_text("rich==0.1 \\\n    --hash=sha256:0\ntyper[all]==0.2 \\\nno-such-package==1.0\n")
    (other_tree / "requirements" / "dev.lock").write_text("no-such-package==1.0\n")
    code, found = doctor(*DEMO)
    assert code == 2
    assert found["packages"]["state"] == "problem"
    assert found["packages"]["found"] == "1 of 3 are missing: no-such-package"
    assert "make setup" in found["packages"]["advice"]
    assert found["development"]["state"] == "optional"

    lock.write_text("rich==0.1\ntyper[all]==0.2\n")
    code, found = doctor(*DEMO)
    assert code == 0
    assert found["packages"]["state"] == "warning"
    assert "2 of 2 are not as tested: rich " in found["packages"]["found"]


def test_a_module_that_tfx_needs_and_hides_is_missed(other_tree):
    folder = other_tree / "tfx_bsl"  # found before the real one
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    code, found = doctor(*DEMO)
    assert code == 2
    assert "tfx_bsl.arrow.sql_util is missing" in found["TFX's imports"]["found"]


def test_imports_that_fail_are_told_by_their_reason(other_tree):
    graph = other_tree / "pipeline" / "graph.py"
    graph.write_text("raise ImportError('TFX cannot import this')\n")
    code, found = doctor(*DEMO, "--imports")
    assert code == 2
    assert "ImportError: TFX cannot import this" in found["imports"]["found"]
    graph.write_text("")
    assert doctor(*DEMO, "--imports")[1]["imports"]["state"] == "ok"


def test_weights_that_are_neither_here_nor_to_be_had_stop_a_run(tmp_path):
    code, found = doctor("--set", "backbones=[resnet50]", KERAS_HOME=str(tmp_path))
    assert code == 2
    assert f"of resnet50 are not in {tmp_path / 'models'}, and https://" in found["weights"]["found"]
    assert "--set weights_dir=FOLDER" in found["weights"]["advice"]

    mine = ("--set", "backbones=[resnet50]", "--set", f"weights_dir={tmp_path / 'mine'}")
    assert "bring resnet50_notop.weights.h5 or " in doctor(*mine)[1]["weights"]["advice"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "resnet50_notop.weights.h5").write_bytes(b"")
    assert doctor(*mine)[0] == 0

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"")
    assert doctor("--set", "backbones=[resnet50]", KERAS_HOME=str(tmp_path))[0] == 0


def test_files_that_the_system_keeps_in_memory_do_not_count_as_used(tmp_path):
    def available(limit: str, used: int) -> int:
        files = {
            "memory.max": limit,
            "memory.current": str(used),
            "memory.stat": "anon 100\nfile 650\nshmem 50\ninactive_file 400\nactive_file 200\nslab_reclaimable 30\n",
        }
        for name, content in files.items():
            (tmp_path / name).write_text(f"{content}\n")
        return _available_memory(tmp_path)

    assert available("1000", 900) == 1000 - (900 - 400 - 200 - 30)
    assert available("max", 900) > 1_000_000


def test_a_workdir_that_cannot_be_written_stops_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    code, found = doctor(*DEMO, "--workdir", tmp_path / "file" / "runs")
    assert code == 2
    assert found["disk"]["state"] == "problem"
    assert "take another --workdir" in found["disk"]["advice"]


def test_a_port_that_is_taken_is_named_with_whose_it_is(tmp_path):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", 8501))
            listener.listen()
        except OSError:
            pass  # taken by somebody else: as good
        code, found = doctor(*DEMO, "--workdir", tmp_path)
    assert code == 0
    assert found["port 8501"]["state"] == "optional"
    assert "REST of the model server: taken (Address already in use)" in found["port 8501"]["found"]
    assert "with another port" in found["port 8501"]["advice"]


def test_a_cluster_and_kubeflow_are_asked(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho '{}'\n")
    kubectl.chmod(0o755)
    with serving() as server:
        server.files["/apis/v2beta1/healthz"] = b"{}"
        reached = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KF_PIPELINES_ENDPOINT": f"{server.address}/"}
        _, found = doctor(*DEMO, **reached)
        assert found["kubectl"] == {
            "name": "kubectl",
            "state": "ok",
            "found": f"{kubectl}, and its cluster answers",
            "advice": "",
        }
        assert found["Kubeflow"]["found"] == f"{server.address}/ answers"

        kubectl.write_text("#!/bin/sh\necho 'no such cluster' >&2\nexit 1\n")
        server.answers["/apis/v2beta1/healthz"] = [status(404)]
        code, found = doctor(*DEMO, **reached)
    assert code == 0
    assert found["kubectl"]["state"] == found["Kubeflow"]["state"] == "optional"
    assert "no cluster answers (no such cluster)" in found["kubectl"]["found"]
    assert "404" in found["Kubeflow"]["found"]


PROXIES = {"ALL_PROXY": "", "https_proxy": "", "http_proxy": ""}


def test_a_proxy_that_cannot_be_used_is_named(tmp_path):
    host = {"KF_PIPELINES_ENDPOINT": "http://kubeflow.invalid", "KERAS_HOME": str(tmp_path)}
    code, found = doctor("--set", "backbones=[resnet50]", **PROXIES | host | {"ALL_PROXY": "socks5://127.0.0.1:9"})
    assert code == 2
    for name in ("weights", "Kubeflow"):
        assert "ALL_PROXY=socks5://127.0.0.1:9: this proxy cannot be used" in found[name]["found"]
        assert found[name]["state"] in ("problem", "optional")


def test_the_doctor_and_submit_ask_kubeflow_through_the_same_proxy(tmp_path):
    spec = ROOT / "kfp_specs" / "smoke.yaml"
    with serving() as proxy:
        proxy.files["/apis/v2beta1/healthz"] = b'{"multi_user": true}'
        for host, variables in (
            ("http://kubeflow.invalid", {"http_proxy": proxy.address}),
            ("http://kubeflow.invalid", {"ALL_PROXY": proxy.address}),
            (proxy.address, {"http_proxy": "http://127.0.0.1:9"}),
        ):
            proxy.requests.clear()
            asked = PROXIES | variables | {"KF_PIPELINES_ENDPOINT": host}
            assert doctor(*DEMO, **asked)[1]["Kubeflow"]["state"] == "ok"
            assert "is for many users: say --namespace" in catbreeds("submit", spec, env=asked).stderr
            assert [path for path, _ in proxy.requests] == ["/apis/v2beta1/healthz"] * 2
    asked = PROXIES | {"http_proxy": "http://me:secret@127.0.0.1:9", "KF_PIPELINES_ENDPOINT": "http://kubeflow.invalid"}
    for said in (doctor(*DEMO, **asked)[1]["Kubeflow"]["found"], catbreeds("submit", spec, env=asked).stderr):
        assert "through the proxy http_proxy=http://127.0.0.1:9)" in said
        assert "secret" not in said


def test_on_a_narrow_terminal_every_line_is_whole_and_the_last_one_is_the_verdict(tmp_path):
    code, output = on_terminal(
        60, "doctor", "--workdir", tmp_path / "no" / "weights", KERAS_HOME=str(tmp_path), **ALONE
    )
    assert code == 2
    lines = output.splitlines()
    assert "…" not in output
    assert any("problem" in line and "weights" in line for line in lines)
    assert "A run on this machine cannot work" in lines[-1] + lines[-2]
