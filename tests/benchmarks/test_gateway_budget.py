"""The gateway stays within its budgets. Its start-up time is printed but not checked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gateway_budget.py"


@pytest.mark.slow
def test_gateway_packages_and_memory_are_within_budget():
    process = subprocess.run([sys.executable, SCRIPT, "--starts", "1"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    packages, start, memory, *photos = process.stdout.splitlines()
    assert re.fullmatch(r"packages +[\d.]+ MB  \(budget: 150 MB\): within budget", packages)
    assert re.fullmatch(r"start +[\d.]+ s   \(budget: 2 s\): (within|exceeds) budget", start)
    assert re.fullmatch(r"memory +[\d.]+ MB  \(budget: 120 MB\): within budget", memory)
    for name, line in zip(("JPEG", "full JPEG", "HEIC"), photos, strict=True):
        assert re.fullmatch(rf"{name} +[\d.]+ MB  \(budget: 600 MB\): within budget", line)
