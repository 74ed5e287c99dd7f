"""The scale benchmark prints the cost of each step for each number of photos, and extrapolates it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_scale_prints_time_and_memory_of_each_step_and_the_extrapolation():
    command = [
        sys.executable,
        SCRIPT,
        "--backbones",
        "resnet50",
        "--side",
        "32",
        "--target",
        "1000",
        "--profile",
        "smoke",
    ]
    command += ["--photos", "60", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    costs, extrapolation = (block.splitlines() for block in done.stdout.split("\n\n"))
    rows = {cells[0]: list(map(float, cells[1:])) for cells in map(str.split, costs[3:-1])}
    steps = ("EmbeddingGen", "Transform", "Tuner", "Trainer", "Evaluator")
    for step in ("ImageExampleGen", "Evaluator-gate", *(f"{step}-resnet50" for step in steps)):
        for seconds, cpu_seconds, megabytes in (rows[step][:3], rows[step][3:6]):
            assert seconds > 0.1
            assert cpu_seconds > 0.1
            assert 300 < megabytes < 10_000
    assert "1,000 photos" in extrapolation[0]
    assert {row.split()[0] for row in extrapolation[2:]} >= rows.keys()
