"""Beam components on the portable job server of Beam with workers in separate processes, as on Flink."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import SMALL, run_pipeline
from tests.serving.model_server.servers import free_port


@contextlib.contextmanager
def beam_server(module: str, *arguments: str, port: int):
    """Run a server of Beam; it is ready when its port accepts connections."""
    # Beam starts its workers with the command `python`.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, f"{module} exited"
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
                break
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_pipeline_runs_on_a_portable_job_server(small, tmp_path):
    jobs, workers = free_port(), free_port()
    options = [
        f"--job_endpoint=localhost:{jobs}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{workers}",
        "--sdk_container_image=local",
    ]
    runners = "apache_beam.runners"
    with (
        beam_server(f"{runners}.portability.local_job_service_main", f"--port={jobs}", port=jobs),
        beam_server(f"{runners}.worker.worker_pool_main", f"--service_port={workers}", port=workers),
    ):
        settings = ("beam.runner=portable", f"beam.options={json.dumps(options)}")
        run = run_pipeline(small.photos, tmp_path, *SMALL, *settings)
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    report, expected = (
        json.loads((r.artifact("ImageExampleGen", "report") / "report.json").read_text()) for r in (run, small)
    )
    assert report == expected
    assert accuracy(run) == pytest.approx(accuracy(small))


def accuracy(run) -> float:
    folder = run.artifact("Evaluator-gate", "evaluation")
    return json.loads((folder / "metrics.json").read_text())["overall"]["accuracy"]
