"""Measure the throughput of ingestion, compared with decoding the photos, and its memory as the data grows.

    python benchmarks/ingest.py --photos 1000 10000

For each number of synthetic photos (640 x 480 pixels, JPEGs of about 130 kB), each in a new process:

    ingest: ImageExampleGen, which reads, decodes, normalizes and hashes photos, finds duplicates and writes examples.
    decode: Pillow decodes each photo and discards the pixels; one process per core.

Importing TensorFlow counts towards the memory but not towards the time. Output on 2 idle CPU cores:

      photos  ingest/s  decode/s  ingest/decode   peak MB
        1000       467      1183           0.39       828
       10000       576       925           0.62       867
    memory with 10000 photos / with 1000 photos: 1.05

Planning the Beam stages takes about 1 s of each run, regardless of the number of photos.
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

SIZE = (640, 480)


class Costs(NamedTuple):
    """Cost of one number of photos.

    Attributes:
        photos: Number of photos.
        ingest_seconds: Duration of ImageExampleGen.
        decode_seconds: Duration of decoding alone.
        megabytes: Peak resident memory of ImageExampleGen.
    """

    photos: int
    ingest_seconds: float
    decode_seconds: float
    megabytes: float


def ingest(data: str) -> dict[str, float]:
    """Run ImageExampleGen on the folder `data` in this process; return `seconds` and `megabytes`."""
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
            code_digest="",
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
    """Decode the photos in the folder `data` on all cores; return `seconds`."""
    paths = [str(path) for path in Path(data).rglob("*.*")]
    with multiprocessing.Pool() as pool:
        pool.map(_decode_photo, paths[:16])  # starts the processes and loads the plugins of Pillow
        started = time.perf_counter()
        for _ in pool.imap_unordered(_decode_photo, paths, chunksize=32):
            pass
        return {"seconds": time.perf_counter() - started}


def _decode_photo(path: str) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").load()


def measure(photos: int) -> Costs:
    """Generate `photos` photos and measure decoding and ingestion."""
    with tempfile.TemporaryDirectory() as folder:
        _log(f"{photos} photos: generating")
        _generate_photos(Path(folder), photos)
        decoding, ingestion = _run_in_process("decode", folder), _run_in_process("ingest", folder)
    _log(f"decode {decoding['seconds']:.1f} s, ingest {ingestion['seconds']:.1f} s, {ingestion['megabytes']:.0f} MB")
    return Costs(photos, ingestion["seconds"], decoding["seconds"], ingestion["megabytes"])


def _generate_photos(folder: Path, photos: int) -> None:
    """Write photos of a size common on the web, with grain so that the files are as large as those of real photos."""
    from PIL import Image, ImageChops

    from pipeline.datasets.sample_data import BREEDS, draw_photo

    grain = Image.effect_noise(SIZE, 12).convert("RGB")
    for number in range(photos):
        breed = BREEDS[number % len(BREEDS)]
        photo = ImageChops.add(draw_photo(breed, f"ingest {number}").resize(SIZE), grain, offset=-128)
        path = folder / breed.name / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.save(path, quality=90)


def _run_in_process(measurement: str, data: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", measurement, data]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure each number of photos and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[1000, 10000], help="numbers of photos")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measurement, data = arguments.child
        print(json.dumps({"ingest": ingest, "decode": decode}[measurement](data)))
        return
    costs = [measure(photos) for photos in sorted(arguments.photos)]
    print(f"{'photos':>8}  {'ingest/s':>8}  {'decode/s':>8}  {'ingest/decode':>13}  {'peak MB':>8}")
    for cost in costs:
        rates = cost.photos / cost.ingest_seconds, cost.photos / cost.decode_seconds
        ratio = rates[0] / rates[1]
        print(f"{cost.photos:>8}  {rates[0]:>8.0f}  {rates[1]:>8.0f}  {ratio:>13.2f}  {cost.megabytes:>8.0f}")
    if len(costs) > 1:
        growth = costs[-1].megabytes / costs[0].megabytes
        print(f"memory with {costs[-1].photos} photos / with {costs[0].photos} photos: {growth:.2f}")


if __name__ == "__main__":
    main()
