"""The gateway keeps its budgets; how long it takes to start is printed and decides nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gateway_budget.py"


@pytest.mark.slow
def test_packages_and_memory_of_the_gateway_are_within_their_budgets():
    process = subprocess.run([sys.executable, SCRIPT, "--starts", "1"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    packages, start, memory, *photos = process.stdout.splitlines()
    assert re.fullmatch(r"packages +[\d.]+ MB  \(budget: 150 MB\): kept", packages)
    assert re.fullmatch(r"start +[\d.]+ s   \(budget: 2 s\): (kept|exceeded)", start)
    assert re.fullmatch(r"memory +[\d.]+ MB  \(budget: 120 MB\): kept", memory)
    for name, line in zip(("JPEG", "full JPEG", "HEIC"), photos, strict=True):
        assert re.fullmatch(rf"{name} +[\d.]+ MB  \(budget: 600 MB\): kept", line)
