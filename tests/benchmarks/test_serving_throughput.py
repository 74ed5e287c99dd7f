"""The serving benchmark prints rates, latencies, CPU times, request sizes and targets, and the memory of the server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_throughput.py"
PATHS = ("grpc", "gateway", "pixels", "grpc batch", "gateway batch")


def benchmark(*options: str) -> list[str]:
    command = [sys.executable, str(SCRIPT), *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.mark.slow
def test_benchmark_prints_rates_latencies_cpu_times_bytes_and_targets():
    lines = benchmark("--clients", "1", "8", "--seconds", "1", "--rounds", "1")
    heading, rows, targets_heading, targets = lines[0], lines[1:11], lines[11], lines[12:]
    columns = ["clients", "path", "req/s", "p50 ms", "p99 ms", "client", "front", "server", "bytes"]
    assert re.split(r"  +", heading.strip()) == columns
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert [row[:2] for row in cells] == [[clients, path] for clients in ("1", "8") for path in PATHS]
    for _, path, *values in cells:
        rate, p50, p99, client, front, server = map(float, values[:-1])
        assert rate > 0
        assert 0 < p50 <= p99
        assert min(client, server) >= 0
        assert (front > 0) == (not path.startswith("grpc"))
    sent = {path: int(values[-1]) for _, path, *values in cells}
    assert sent["pixels"] > 224 * 224 * 3 * 4  # the pixels, as floats
    assert sent["grpc"] == sent["gateway"] < sent["pixels"] / 8
    assert targets_heading == "at 8 clients:"
    for line, target in zip(targets[:3], (">= 0.87", ">= 1", ">= 8"), strict=True):
        assert re.fullmatch(rf"  .*: [\d.]+ \(target: {target}\): (reached|missed)", line)
    assert targets[2].endswith("reached")
    assert re.fullmatch(r"  requests per second, grpc batch / grpc: [\d.]+", targets[3])


@pytest.mark.slow
def test_memory_is_printed_after_each_step():
    heading, server, *steps = benchmark("--memory")
    assert re.fullmatch(r"resident memory in MB; model: resnet50, \d+ MB +total +private", heading)
    assert server == "model server:"
    memory = {}
    for line in steps:
        if match := re.fullmatch(r"(.*?) +(\d+) +(\d+)", line):
            memory.setdefault(match[1], []).append((int(match[2]), int(match[3])))
    for values in memory.values():
        assert all(0 < private < total for total, private in values)
    loaded, loaded_without_python = memory["load the model"]
    assert loaded_without_python < loaded
    assert memory["batches of 2, 4, 8, 16 photos"] < memory["batches for the second version"]
    assert memory["import TensorFlow without Keras"] < memory["import TensorFlow with Keras"]
