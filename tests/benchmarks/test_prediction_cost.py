"""The serving benchmark runs, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prediction_cost.py"


@pytest.mark.slow
def test_it_prints_rates_latencies_and_bytes_and_what_was_reached():
    command = [sys.executable, str(SCRIPT), "--clients", "1", "8", "--seconds", "0.5", "--rounds", "1"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    heading, *rows, judged, throughput, size, latency = process.stdout.splitlines()
    assert heading.split() == ["clients", "way", "req/s", "p50", "ms", "p99", "ms", "bytes"]
    assert [row.split()[:2] for row in rows] == [[n, way] for n in ("1", "8") for way in ("grpc", "gateway", "seed")]
    for row in rows:
        rate, p50, p99 = map(float, row.split()[2:5])
        assert rate > 0
        assert 0 < p50 <= p99
    sent = {row.split()[1]: int(row.split()[5]) for row in rows}
    assert sent["seed"] > 224 * 224 * 3 * 4  # the pixels, as floats
    assert sent["grpc"] == sent["gateway"] < sent["seed"] / 8
    assert judged == "at 8 clients:"
    for line, target in ((throughput, ">= 3"), (size, ">= 8"), (latency, "<= 8")):
        assert re.fullmatch(rf"  .*: -?[\d.]+ \(to reach: {target}\): (reached|missed)", line)
    assert size.endswith("reached")
