"""`catbreeds doctor` prints a line for every missing prerequisite; those that make a run fail set the exit code."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from components.memory import available_memory
from pipeline.settings import ROOT
from tests.model_files import SIDE, write_model
from tests.pipeline.flaky_server import serving, status
from tests.running import CATBREEDS, catbreeds, on_terminal

# Disables the network, clusters and Kubeflow that the test machine may have.
ISOLATED = {
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "",
    "no_proxy": "",
    "KUBECONFIG": "/dev/null",
    "KF_PIPELINES_ENDPOINT": "",
}
DEMO = ("--profile", "demo")


def doctor(*options: object, cwd: Path | None = None, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code and the findings by name."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_")}
    command = [str(CATBREEDS), "doctor", "--json", *map(str, options)]
    environment = kept | ISOLATED | variables
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["can_run"] == (done.returncode == 0)
    return done.returncode, {finding["name"]: finding for finding in document["findings"]}


@pytest.fixture
def other_tree(tmp_path, monkeypatch):
    """Copy the code and the lock files to a folder that tests may change."""
    for package in ("pipeline", "components", "serving"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "requirements").mkdir()
    for lock in ("pipeline.lock", "dev.lock"):
        shutil.copy(ROOT / "requirements" / lock, tmp_path / "requirements" / lock)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("programs", [os.environ["PATH"], "/none"])
def test_a_fully_equipped_machine_has_no_problems_and_special_programs_are_optional(tmp_path, programs):
    code, found = doctor(*DEMO, "--workdir", tmp_path, PATH=programs)
    assert code == 0
    for name in ("Python", "packages", "TFX's imports", "memory", "disk", "weights", "precision"):
        assert found[name]["state"] in ("ok", "warning"), found[name]
    assert found["kubectl"]["state"] == found["Kubeflow"]["state"] == "optional"
    for finding in found.values():
        assert (finding["advice"] != "") == (finding["state"] != "ok") or finding["name"] == "model server", finding


def test_a_missing_package_is_a_problem_and_a_different_version_is_a_warning(other_tree):
    lock = other_tree / "requirements" / "pipeline.lock"
    lock.write_text("rich==0.1 \\\n    --hash=sha256:0\ntyper[all]==0.2 \\\nno-such-package==1.0\n")
    (other_tree / "requirements" / "dev.lock").write_text("no-such-package==1.0\n")
    code, found = doctor(*DEMO)
    assert code == 2
    assert found["packages"]["state"] == "problem"
    assert found["packages"]["found"] == "1 of 3 missing: no-such-package"
    assert "make setup" in found["packages"]["advice"]
    assert found["development"]["state"] == "optional"

    lock.write_text("rich==0.1\ntyper[all]==0.2\n")
    code, found = doctor(*DEMO)
    assert code == 0
    assert found["packages"]["state"] == "warning"
    assert "2 of 2 in an untested version: rich " in found["packages"]["found"]


def test_a_missing_module_that_tfx_hides_is_a_problem(other_tree):
    folder = other_tree / "tfx_bsl"  # found before the real one
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    code, found = doctor(*DEMO)
    assert code == 2
    assert "tfx_bsl.arrow.sql_util is missing" in found["TFX's imports"]["found"]


def test_a_failed_import_is_reported_with_its_reason(other_tree):
    graph = other_tree / "pipeline" / "graph.py"
    graph.write_text("raise ImportError('TFX cannot import this')\n")
    code, found = doctor(*DEMO, "--imports")
    assert code == 2
    assert "ImportError: TFX cannot import this" in found["imports"]["found"]
    graph.write_text("")
    assert doctor(*DEMO, "--imports")[1]["imports"]["state"] == "ok"


@pytest.mark.parametrize(
    ("flags", "setting", "code", "state", "found"),
    [
        ("amx_bf16 amx_tile", "float32", 0, "ok", "float32: this CPU has AMX; precision=bfloat16 would be faster"),
        ("amx_bf16 amx_tile", "auto", 0, "ok", "bfloat16: this CPU has AMX"),
        ("avx512_bf16", "auto", 0, "ok", "float32: this CPU has no AMX for bfloat16"),
        ("avx512_bf16", "bfloat16", 2, "problem", "bfloat16: this CPU has no AMX"),
    ],
)
def test_the_precision_of_a_run_on_this_cpu_is_reported(other_tree, flags, setting, code, state, found):
    (other_tree / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    module = other_tree / "serving" / "precision.py"
    module.write_text(module.read_text().replace("/proc/cpuinfo", str(other_tree / "cpuinfo")))
    done, findings = doctor(*DEMO, "--set", f"precision={setting}")
    assert done == code
    assert (findings["precision"]["state"], findings["precision"]["found"]) == (state, found)


def test_missing_weights_that_cannot_be_downloaded_are_a_problem(tmp_path):
    code, found = doctor("--set", "backbones=[resnet50]", KERAS_HOME=str(tmp_path))
    assert code == 2
    assert f"resnet50: not found in {tmp_path / 'models'}, and https://" in found["weights"]["found"]
    assert "--set weights_dir=FOLDER" in found["weights"]["advice"]

    with_folder = ("--set", "backbones=[resnet50]", "--set", f"weights_dir={tmp_path / 'mine'}")
    assert "add resnet50_notop.weights.h5 or " in doctor(*with_folder)[1]["weights"]["advice"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "resnet50_notop.weights.h5").write_bytes(b"")
    assert doctor(*with_folder)[0] == 0

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"")
    assert doctor("--set", "backbones=[resnet50]", KERAS_HOME=str(tmp_path))[0] == 0


def test_a_model_file_that_cannot_be_a_backbone_is_a_problem(tmp_path):
    backbones = f"backbones=[{{name: net, model: {write_model(tmp_path / 'net.keras', SIDE)}, layers: [LAYER]}}]"
    code, found = doctor("--set", backbones.replace("LAYER", "top"), KERAS_HOME=str(tmp_path))
    assert (code, found["model files"]["state"]) == (0, "ok")
    assert found["weights"]["found"] == "not needed: the settings use no built-in backbones"
    code, found = doctor("--set", backbones.replace("LAYER", "tpo"))
    assert (code, found["model files"]["state"]) == (2, "problem")
    assert "has no layer 'tpo'" in found["model files"]["found"]


def test_the_page_cache_does_not_count_as_used_memory(tmp_path):
    def available(limit: str, used: int) -> int:
        files = {
            "memory.max": limit,
            "memory.current": str(used),
            "memory.stat": "anon 100\nfile 650\nshmem 50\ninactive_file 400\nactive_file 200\nslab_reclaimable 30\n",
        }
        for name, content in files.items():
            (tmp_path / name).write_text(f"{content}\n")
        return available_memory(tmp_path)

    assert available("1000", 900) == 1000 - (900 - 400 - 200 - 30)
    assert available("max", 900) > 1_000_000


def test_a_workdir_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    code, found = doctor(*DEMO, "--workdir", tmp_path / "file" / "runs")
    assert code == 2
    assert found["disk"]["state"] == "problem"
    assert "choose another --workdir" in found["disk"]["advice"]


def test_a_used_port_is_reported_with_the_server_that_needs_it(tmp_path):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", 8501))
            listener.listen()
        except OSError:
            pass  # another process already uses it, which is sufficient for the test
        code, found = doctor(*DEMO, "--workdir", tmp_path)
    assert code == 0
    assert found["port 8501"]["state"] == "optional"
    assert "the model server's REST API: port is in use (Address already in use)" in found["port 8501"]["found"]
    assert "use another port" in found["port 8501"]["advice"]


def test_the_connections_to_a_cluster_and_to_kubeflow_are_checked(tmp_path):
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
            "found": f"{kubectl}, connected to a cluster",
            "advice": "",
        }
        assert found["Kubeflow"]["found"] == f"{server.address}/: Kubeflow Pipelines responds"

        kubectl.write_text("#!/bin/sh\necho 'no such cluster' >&2\nexit 1\n")
        server.responses["/apis/v2beta1/healthz"] = [status(404)]
        code, found = doctor(*DEMO, **reached)
    assert code == 0
    assert found["kubectl"]["state"] == found["Kubeflow"]["state"] == "optional"
    assert "it cannot reach a cluster (no such cluster)" in found["kubectl"]["found"]
    assert "404" in found["Kubeflow"]["found"]


PROXIES = {"ALL_PROXY": "", "https_proxy": "", "http_proxy": ""}


def test_an_unusable_proxy_is_reported(tmp_path):
    host = {"KF_PIPELINES_ENDPOINT": "http://kubeflow.invalid", "KERAS_HOME": str(tmp_path)}
    code, found = doctor("--set", "backbones=[resnet50]", **PROXIES | host | {"ALL_PROXY": "socks5://127.0.0.1:9"})
    assert code == 2
    for name in ("weights", "Kubeflow"):
        assert "ALL_PROXY=socks5://127.0.0.1:9: this proxy cannot be used" in found[name]["found"]
        assert found[name]["state"] in ("problem", "optional")


def test_doctor_and_submit_connect_to_kubeflow_through_the_same_proxy(tmp_path):
    spec = ROOT / "kfp_specs" / "smoke.yaml"
    with serving() as proxy:
        proxy.files["/apis/v2beta1/healthz"] = b'{"multi_user": true}'
        for host, variables in (
            ("http://kubeflow.invalid", {"http_proxy": proxy.address}),
            ("http://kubeflow.invalid", {"ALL_PROXY": proxy.address}),
            (proxy.address, {"http_proxy": "http://127.0.0.1:9"}),
        ):
            proxy.requests.clear()
            environment = PROXIES | variables | {"KF_PIPELINES_ENDPOINT": host}
            assert doctor(*DEMO, **environment)[1]["Kubeflow"]["state"] == "ok"
            assert "is a multi-user server: pass --namespace" in catbreeds("submit", spec, env=environment).stderr
            assert [path for path, _ in proxy.requests] == ["/apis/v2beta1/healthz"] * 2
    url = "http://me:secret@127.0.0.1:9"
    environment = PROXIES | {"http_proxy": url, "KF_PIPELINES_ENDPOINT": "http://kubeflow.invalid"}
    found = doctor(*DEMO, **environment)[1]["Kubeflow"]["found"]
    for message in (found, catbreeds("submit", spec, env=environment).stderr):
        assert "through the proxy http_proxy=http://127.0.0.1:9)" in message
        assert "secret" not in message


def test_a_narrow_terminal_truncates_no_line_and_the_verdict_is_last(tmp_path):
    code, output = on_terminal(
        60, "doctor", "--workdir", tmp_path / "no" / "weights", KERAS_HOME=str(tmp_path), **ISOLATED
    )
    assert code == 2
    lines = output.splitlines()
    assert "…" not in output
    assert any("problem" in line and "weights" in line for line in lines)
    assert "The pipeline cannot run on this machine" in " ".join([lines[-2].strip(), lines[-1].strip()])
