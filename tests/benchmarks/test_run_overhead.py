"""The run benchmark prints the ratio of run and floor, and the seconds of each component."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "run_overhead.py"


@pytest.mark.slow
def test_run_overhead_prints_run_floor_ratio_and_components():
    command = [sys.executable, SCRIPT, "--photos", "60", "--backbones", "resnet50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heading, row, _, _, *components = done.stdout.splitlines()
    assert heading.split() == ["photos", "run", "s", "floor", "s", "run/floor", "passes", "s", "trials", "s"]
    photos, run, floor, ratio, passes, trials = map(float, row.split())
    assert photos == 60
    assert run > floor > 0
    assert abs(ratio - run / floor) < 0.1 * ratio
    assert abs(floor - passes - trials) < 0.2
    assert {line.split()[1] for line in components} >= {"Backbone-resnet50", "Tuner-resnet50", "Pusher"}
