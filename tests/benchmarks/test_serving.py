"""The prediction benchmark prints rates, latencies, request sizes and targets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prediction_cost.py"


@pytest.mark.slow
def test_prediction_cost_prints_rates_latencies_bytes_and_targets():
    command = [sys.executable, str(SCRIPT), "--clients", "1", "8", "--seconds", "0.5", "--rounds", "1"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    heading, *rows, targets_heading, throughput, size, latency = process.stdout.splitlines()
    assert heading.split() == ["clients", "path", "req/s", "p50", "ms", "p99", "ms", "bytes"]
    assert [row.split()[:2] for row in rows] == [
        [n, path] for n in ("1", "8") for path in ("grpc", "gateway", "pixels")
    ]
    for row in rows:
        rate, p50, p99 = map(float, row.split()[2:5])
        assert rate > 0
        assert 0 < p50 <= p99
    sent = {row.split()[1]: int(row.split()[5]) for row in rows}
    assert sent["pixels"] > 224 * 224 * 3 * 4  # the pixels, as floats
    assert sent["grpc"] == sent["gateway"] < sent["pixels"] / 8
    assert targets_heading == "at 8 clients:"
    for line, target in ((throughput, ">= 3"), (size, ">= 8"), (latency, "<= 8")):
        assert re.fullmatch(rf"  .*: -?[\d.]+ \(target: {target}\): (reached|missed)", line)
    assert size.endswith("reached")
