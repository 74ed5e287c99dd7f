"""The ingestion benchmark runs, and prints what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ingest.py"


@pytest.mark.slow
def test_it_prints_rates_their_ratio_and_the_growth_of_memory():
    command = [sys.executable, str(SCRIPT), "--images", "10", "40"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    heading, few, many, growth = process.stdout.splitlines()
    assert heading.split() == ["photos", "ours/s", "plain/s", "ours/plain", "peak", "MB"]
    assert [few.split()[0], many.split()[0]] == ["10", "40"]
    assert growth.startswith("memory at 40 photos / at 10: 1.0")
