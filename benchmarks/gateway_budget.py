"""What the gateway needs: bytes of packages, seconds from its start until it listens, memory when nobody asks.

    python benchmarks/gateway_budget.py

Its packages are installed in an environment of their own, as serving/gateway/Dockerfile does it, and the gateway runs
in that. `packages` are all files there, compiled ones included, without Python itself. Each start is that of a new
process, timed until `/healthz` answers; seconds are the median of the starts. Memory is what is resident then, the
highest of the starts.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

import httpx
import psutil

ROOT = Path(__file__).parents[1]
PACKAGES_MB, START_SECONDS, MEMORY_MB = 150, 2.0, 120
DEADLINE_SECONDS = 60


def install(folder: Path) -> tuple[Path, float]:
    """An environment with the gateway's packages: its Python, and megabytes of what was installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python, "install"]
    lock = ROOT / "requirements" / "gateway.lock"
    subprocess.run([*command, "--no-deps", "--require-hashes", "-r", lock], check=True)
    packages = (folder / "lib").glob("python*/site-packages/**/*")
    return python, sum(path.lstat().st_size for path in packages if not path.is_dir()) / 1e6


def start(python: Path) -> tuple[float, float]:
    """Starts the gateway and ends it: seconds until it answers, and megabytes of memory then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_GATEWAY_")}
    environment |= {"CATBREEDS_GATEWAY_HOST": "127.0.0.1", "CATBREEDS_GATEWAY_PORT": str(port)}
    started = time.perf_counter()
    with subprocess.Popen(
        [python, "-m", "serving.gateway"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() > started + DEADLINE_SECONDS:
                    raise RuntimeError("the gateway does not start")
                time.sleep(0.005)
            return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss / 1e6
        finally:
            process.terminate()


def answers(port: int) -> bool:
    """Whether the gateway there is alive."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
    except OSError:
        return False
    return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success


def show(what: str, value: float, unit: str, budget: float) -> None:
    """A line: the value, the budget, and whether it is kept."""
    verdict = "kept" if value <= budget else "exceeded"
    print(f"{what:<10} {value:>6.1f} {unit:<2}  (budget: {budget:g} {unit}): {verdict}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="how often it is started")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python, megabytes = install(Path(folder))
        start(python)  # files are in the cache of the operating system, as after an image was pulled
        starts = [start(python) for _ in range(arguments.starts)]
    seconds, memory = zip(*starts, strict=True)
    show("packages", megabytes, "MB", PACKAGES_MB)
    show("start", statistics.median(seconds), "s", START_SECONDS)
    show("memory", max(memory), "MB", MEMORY_MB)


if __name__ == "__main__":
    main()
