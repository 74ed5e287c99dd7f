"""The tuning benchmark prints its ratios and which figures it scaled."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tuning_cost.py"


@pytest.mark.slow
def test_tuning_cost_prints_ratios_and_names_scaled_figures():
    command = [sys.executable, BENCHMARK, "--photos", "60", "--side", "71"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"recipe/pipeline +pipeline/floor", done.stdout)
    assert "scaled" in done.stdout
