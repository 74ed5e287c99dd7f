"""Measure the size of the gateway's packages, its start-up time, and its memory when idle and with large photos.

    python benchmarks/gateway_budget.py

The benchmark installs the packages of the gateway in a new environment, as serving/gateway/Dockerfile does, and runs
the gateway there.

    packages: size of all files in the environment, including compiled files and excluding Python itself.
    start: time from the start of the process until `/healthz` responds; median over the starts.
    memory: resident memory at that moment; maximum over the starts.
    JPEG, full JPEG, HEIC: peak memory (VmHWM) of a gateway that receives one photo of 50 million pixels, as a baseline
        JPEG, a progressive JPEG without chroma subsampling, or a HEIC. No model server runs, because the gateway
        decodes a photo before it queries the model server.
"""

import argparse
import contextlib
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pillow_heif
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGES_MB, START_SECONDS, MEMORY_MB, PHOTO_MB = 150, 2.0, 120, 600
LARGE_PHOTO_SIZE = (8192, 6144)
DEADLINE_SECONDS = 60


def install(folder: Path) -> tuple[Path, float]:
    """Install the packages of the gateway in a new environment.

    Returns:
        The Python interpreter of the environment, and the size of the packages in megabytes.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python, "install"]
    lock = ROOT / "requirements" / "gateway.lock"
    subprocess.run([*command, "--no-deps", "--require-hashes", "-r", lock], check=True)
    packages = (folder / "lib").glob("python*/site-packages/**/*")
    return python, sum(path.lstat().st_size for path in packages if not path.is_dir()) / 1e6


@contextlib.contextmanager
def gateway(python: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a gateway, wait until it responds, and yield its process and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_GATEWAY_")}
    environment |= {"CATBREEDS_GATEWAY_HOST": "127.0.0.1", "CATBREEDS_GATEWAY_PORT": str(port)}
    environment |= {"CATBREEDS_GATEWAY_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}
    started = time.perf_counter()
    process = subprocess.Popen([python, "-m", "serving.gateway"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not is_healthy(port):
            if process.poll() is not None or time.perf_counter() > started + DEADLINE_SECONDS:
                raise RuntimeError(f"gateway: did not respond within {DEADLINE_SECONDS} s; see its output above")
            time.sleep(0.005)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def start(python: Path) -> tuple[float, float]:
    """Start and stop the gateway; return its start-up time in seconds and its memory in megabytes."""
    started = time.perf_counter()
    with gateway(python) as (process, _):
        return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss / 1e6


def peak_memory(python: Path, photo: bytes) -> float:
    """Return the peak memory in megabytes of a gateway that receives `photo`."""
    with gateway(python) as (process, port):
        url = f"http://127.0.0.1:{port}/v1/breeds:predict"
        response = httpx.post(url, content=photo, trust_env=False, timeout=2 * DEADLINE_SECONDS)
        if response.status_code < 500:  # decoded photos give 5xx, because no model server runs
            raise RuntimeError(f"gateway: did not decode the photo: {response.text}")
        # ru_maxrss would also count the memory of this process at the time of the fork.
        status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def large_photos() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of photos of 50 million pixels."""
    pillow_heif.register_heif_opener()
    noise = (
        Image.effect_noise((LARGE_PHOTO_SIZE[0] // 8, LARGE_PHOTO_SIZE[1] // 8), 60)
        .resize(LARGE_PHOTO_SIZE)
        .convert("RGB")
    )
    for name, image_format, options in (
        ("JPEG", "JPEG", {"quality": 90}),
        ("full JPEG", "JPEG", {"quality": 90, "progressive": True, "subsampling": 0}),
        ("HEIC", "HEIF", {"quality": 50, "enc_params": {"preset": "ultrafast"}}),
    ):
        content = io.BytesIO()
        noise.save(content, image_format, **options)
        yield name, content.getvalue()


def is_healthy(port: int) -> bool:
    """Whether a gateway on `port` responds and is healthy."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
    except OSError:
        return False
    return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success


def print_result(name: str, value: float, unit: str, budget: float) -> None:
    """Print the value, the budget, and whether the value is within the budget."""
    verdict = "within budget" if value <= budget else "exceeds budget"
    print(f"{name:<10} {value:>6.1f} {unit:<2}  (budget: {budget:g} {unit}): {verdict}")


def main() -> None:
    """Measure and print all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="number of times that the gateway is started")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python, megabytes = install(Path(folder))
        start(python)  # fills the page cache, as pulling an image does
        starts = [start(python) for _ in range(arguments.starts)]
        peaks = {name: peak_memory(python, photo) for name, photo in large_photos()}
    seconds, memory = zip(*starts, strict=True)
    print_result("packages", megabytes, "MB", PACKAGES_MB)
    print_result("start", statistics.median(seconds), "s", START_SECONDS)
    print_result("memory", max(memory), "MB", MEMORY_MB)
    for name, megabytes in peaks.items():
        print_result(name, megabytes, "MB", PHOTO_MB)


if __name__ == "__main__":
    main()
