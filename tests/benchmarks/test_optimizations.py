"""The benchmark of the optimizations measures every case with and without its optimization."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "optimizations.py"
CASES = [
    "reused heads",
    "solver",
    "few rows",
    "both kinds at once",
    "epoch in one step",
    "dropout",
    "AdamW",
    "one thread",
    "frozen search",
    "batch in two parts",
    "huge pages",
    "frozen executor",
    "frozen run",
    "import TensorFlow",
    "import TFX",
]


@pytest.mark.slow
def test_optimizations_prints_seconds_and_ratio_of_each_case():
    command = [sys.executable, SCRIPT, "--rounds", "1", "--photos", "16", "--epochs", "2", "--solved-photos", "60"]
    command += ["--side", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["case", "with", "s", "without", "s", "ratio"]
    assert [row[:18].strip() for row in rows] == CASES
    for row in rows:
        optimized, plain, ratio = map(float, row[18:].split())
        assert min(optimized, plain) > 0
        assert ratio == pytest.approx(plain / optimized, rel=0.1)
