"""What ingestion costs: memory as the data grows, and time beside merely decoding the photos.

    python benchmarks/ingest.py --images 1000 10000

For each number of generated photos (640 x 480, JPEG of about 130 kB), in processes of their own:

    ours: ImageExampleGen whole: reading, decoding, normalising, hashing, finding duplicates, writing examples.
    plain: Pillow opens and decodes each photo, in as many processes as there are cores; nothing is kept.

TensorFlow's import is in the memory and not in the seconds. Measured by that command on 2 idle CPU cores:

      photos    ours/s   plain/s  ours/plain   peak MB
        1000       467      1183        0.39       828
       10000       576       925        0.62       867
    memory at 10000 photos / at 1000: 1.05

About 1 s of each run, whatever its size, is Beam planning its stages.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

SIZE = (640, 480)


class Costs(NamedTuple):
    """Of one number of photos: seconds of both, and the peak of resident memory in MB of ours."""

    photos: int
    ours: float
    plain: float
    megabytes: float


def ingest(data: str) -> dict[str, float]:
    """Runs ImageExampleGen on `data` in this process."""
    import apache_beam as beam
    from tfx.types.standard_artifacts import Examples

    from components.artifacts import IngestReport
    from components.ingestion.image_example_gen import ImageExampleGen
    from pipeline.settings import Settings

    settings = Settings()
    with tempfile.TemporaryDirectory() as folder:
        examples, report = Examples(), IngestReport()
        examples.uri, report.uri = f"{folder}/examples", f"{folder}/report"
        started = time.perf_counter()
        ImageExampleGen.test_call(
            examples,
            report,
            data=data,
            data_digest="",
            code="",
            train=settings.split.train,
            eval=settings.split.eval,
            seed=settings.split.seed,
            max_side=settings.ingest.max_side,
            near_duplicate_bits=settings.ingest.near_duplicate_bits,
            beam_pipeline=beam.Pipeline(argv=settings.beam.pipeline_args()),
        )
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def decode(data: str) -> dict[str, float]:
    """Decodes the photos of `data` in all cores."""
    paths = [str(path) for path in Path(data).rglob("*.*")]
    with multiprocessing.Pool() as pool:
        pool.map(_load, paths[:16])  # the processes and Pillow's plugins are there before the clock starts
        started = time.perf_counter()
        for _ in pool.imap_unordered(_load, paths, chunksize=32):
            pass
        return {"seconds": time.perf_counter() - started}


def _load(path: str) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").load()


def measure(images: int) -> Costs:
    """Draws photos, then runs plain, ours."""
    with tempfile.TemporaryDirectory() as folder:
        _say(f"{images} images: drawing them")
        _draw(Path(folder), images)
        plain, ours = _child("decode", folder), _child("ingest", folder)
    _say(f"plain {plain['seconds']:.1f} s, ours {ours['seconds']:.1f} s, {ours['megabytes']:.0f} MB")
    return Costs(images, ours["seconds"], plain["seconds"], ours["megabytes"])


def _draw(folder: Path, images: int) -> None:
    """Drawings at the size of photos in the web, with the grain that makes their files as large."""
    from PIL import Image, ImageChops

    from pipeline.datasets.sample_data import BREEDS, draw_photo

    grain = Image.effect_noise(SIZE, 12).convert("RGB")
    for number in range(images):
        breed = BREEDS[number % len(BREEDS)]
        photo = ImageChops.add(draw_photo(breed, f"ingest {number}").resize(SIZE), grain, offset=-128)
        path = folder / breed.name / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.save(path, quality=90)


def _child(what: str, data: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, data]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000], help="photos drawn")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, data = arguments.child
        print(json.dumps({"ingest": ingest, "decode": decode}[what](data)))
        return
    costs = [measure(images) for images in sorted(arguments.images)]
    print(f"{'photos':>8}  {'ours/s':>8}  {'plain/s':>8}  {'ours/plain':>10}  {'peak MB':>8}")
    for cost in costs:
        rates = cost.photos / cost.ours, cost.photos / cost.plain
        ratio = rates[0] / rates[1]
        print(f"{cost.photos:>8}  {rates[0]:>8.0f}  {rates[1]:>8.0f}  {ratio:>10.2f}  {cost.megabytes:>8.0f}")
    if len(costs) > 1:
        growth = costs[-1].megabytes / costs[0].megabytes
        print(f"memory at {costs[-1].photos} photos / at {costs[0].photos}: {growth:.2f}")


if __name__ == "__main__":
    main()
