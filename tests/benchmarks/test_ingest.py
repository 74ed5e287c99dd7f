"""The ingestion benchmark prints rates, their ratio and the growth of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ingest.py"


@pytest.mark.slow
def test_ingest_prints_rates_their_ratio_and_memory_growth():
    command = [sys.executable, str(SCRIPT), "--photos", "10", "40"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    heading, few, many, growth = process.stdout.splitlines()
    assert heading.split() == ["photos", "ingest/s", "decode/s", "ingest/decode", "peak", "MB"]
    assert [few.split()[0], many.split()[0]] == ["10", "40"]
    assert growth.startswith("memory with 40 photos / with 10 photos: 1.0")
