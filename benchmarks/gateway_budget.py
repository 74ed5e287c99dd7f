"""What the gateway needs: bytes of packages, seconds until it listens, memory when idle and for large photos.

    python benchmarks/gateway_budget.py

Its packages are installed in an environment of their own, as serving/gateway/Dockerfile does it, and the gateway runs
in that. `packages` are all files there, compiled ones included, without Python itself. Each start is that of a new
process, timed until `/healthz` answers; seconds are the median of the starts. Memory is what is resident then, the
highest of the starts.

The other lines are the peaks (VmHWM) of a gateway that is sent one photo of 50 million pixels: a JPEG, a progressive
JPEG with full colour, a HEIC. There is no model server: the photo is decoded before one is asked.
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

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

import httpx
import pillow_heif
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGES_MB, START_SECONDS, MEMORY_MB, PHOTO_MB = 150, 2.0, 120, 600
LARGE = (8192, 6144)
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


@contextlib.contextmanager
def gateway(python: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A gateway that answers, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_GATEWAY_")}
    environment |= {"CATBREEDS_GATEWAY_HOST": "127.0.0.1", "CATBREEDS_GATEWAY_PORT": str(port)}
    environment |= {"CATBREEDS_GATEWAY_DEADLINE_SECONDS": str(DEADLINE_SECONDS)}
    started = time.perf_counter()
    process = subprocess.Popen([python, "-m", "serving.gateway"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None or time.perf_counter() > started + DEADLINE_SECONDS:
                raise RuntimeError("the gateway does not start")
            time.sleep(0.005)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def start(python: Path) -> tuple[float, float]:
    """Starts the gateway and ends it: seconds until it answers, and megabytes of memory then."""
    started = time.perf_counter()
    with gateway(python) as (process, _):
        return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss / 1e6


def peak(python: Path, photo: bytes) -> float:
    """Megabytes of memory at the most, of a gateway that is sent a photo."""
    with gateway(python) as (process, port):
        url = f"http://127.0.0.1:{port}/v1/breeds:predict"
        answer = httpx.post(url, content=photo, trust_env=False, timeout=2 * DEADLINE_SECONDS)
        if answer.status_code < 500:  # the photo is refused; what should be missing is the model server
            raise RuntimeError(f"the photo was not decoded: {answer.text}")
        # Not ru_maxrss: that counts what this process had when it was forked.
        status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def large_photos() -> Iterator[tuple[str, bytes]]:
    """Name and content of photos of 50 million pixels."""
    pillow_heif.register_heif_opener()
    noise = Image.effect_noise((LARGE[0] // 8, LARGE[1] // 8), 60).resize(LARGE).convert("RGB")
    for name, kind, options in (
        ("JPEG", "JPEG", {"quality": 90}),
        ("full JPEG", "JPEG", {"quality": 90, "progressive": True, "subsampling": 0}),
        ("HEIC", "HEIF", {"quality": 50, "enc_params": {"preset": "ultrafast"}}),
    ):
        content = io.BytesIO()
        noise.save(content, kind, **options)
        yield name, content.getvalue()


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
        peaks = {name: peak(python, photo) for name, photo in large_photos()}
    seconds, memory = zip(*starts, strict=True)
    show("packages", megabytes, "MB", PACKAGES_MB)
    show("start", statistics.median(seconds), "s", START_SECONDS)
    show("memory", max(memory), "MB", MEMORY_MB)
    for name, megabytes in peaks.items():
        show(name, megabytes, "MB", PHOTO_MB)


if __name__ == "__main__":
    main()
