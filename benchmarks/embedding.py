"""Compare the duration of EmbeddingGen with that of the bare networks, in one run.

    python benchmarks/embedding.py --photos 2400

For each backbone, with random weights, the benchmark measures milliseconds per photo:

    bare: the forward pass of the network on pixels that are in memory, in batches as large as those of EmbeddingGen,
        for some photos before and after EmbeddingGen.
    EmbeddingGen: the component from the end of its first batch to its end. It reads, decodes, crops, resizes and embeds
        the photos of train and eval, and writes the embeddings.

`start-up s` is the duration of EmbeddingGen until its first batch ends: starting its process and Beam, loading the
model, and the first forward pass. The photos are synthetic, 500 pixels long, as those of the Oxford-IIIT Pet Dataset.

Output on 2 slow CPU cores. Ratios below 1 are possible, because EmbeddingGen computes two halves of a batch at once:

    2400 photos, 224 px, random weights, float32
    backbone                  bare ms  EmbeddingGen ms            ratio       start-up s
    xception                     81.0             73.9             0.91              3.3
    resnet50                     65.5             58.2             0.89              5.4
    efficientnetb7              156.0            161.8             1.04             12.4
    all                         302.5            293.9             0.97             21.1
"""

import argparse
import functools
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pipeline_run import log, run_pipeline

from pipeline.datasets.sample_data import write_sample_data
from pipeline.huge_pages import restart_with_huge_pages
from pipeline.settings import load

BREEDS = 6
LONG_SIDE = 500
JPEG_QUALITY = 95
BACKBONES = ["xception", "resnet50", "efficientnetb7"]


class Cost(NamedTuple):
    """Durations of one backbone.

    Attributes:
        bare: Milliseconds per photo of the bare network.
        embedding_gen: Milliseconds per photo of EmbeddingGen after its first batch.
        startup: Seconds until EmbeddingGen's first batch ends.
    """

    bare: float
    embedding_gen: float
    startup: float


def measure(photos: int, side: int, backbones: list[str], bare_photos: int, folder: Path) -> dict[str, Cost]:
    """Return the costs of each backbone.

    Args:
        photos: Number of photos, including test.
        side: Side of the input image in pixels.
        backbones: Names of the backbones.
        bare_photos: Number of photos in each measurement of the bare network.
        folder: Folder for the photos and the workdir.
    """
    log(f"{photos} photos: generating")
    paths = write_sample_data(folder / "photos", breeds=BREEDS, photos=photos // BREEDS)
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.map(_enlarge, paths)
    costs = {}
    for name in backbones:
        overrides = [f"data={folder / 'photos'}", f"workdir={folder / 'runs'}", f"backbones=[{name}]"]
        settings = load("standard", [*overrides, "weights=random", f"image_size={side}"])
        bare = functools.partial(bare_seconds, name, side, settings.beam.embedding_batch_size, bare_photos)
        before = _in_new_process(bare)
        log(f"{name}, bare: {1000 * before:.1f} ms per photo")
        progress: list[tuple[float, int]] = []
        component = f"EmbeddingGen-{name}"
        run = run_pipeline(settings, component, on_progress=functools.partial(_record, progress, component))[component]
        ended = time.perf_counter()
        (first_ended, first), (_, total) = progress[0], progress[-1]
        after = _in_new_process(bare)
        log(f"{name}, bare: {1000 * after:.1f} ms per photo")
        steady = ended - first_ended
        costs[name] = Cost(1000 * (before + after) / 2, 1000 * steady / (total - first), run.seconds - steady)
    return costs


def bare_seconds(backbone: str, side: int, batch: int, photos: int) -> float:
    """Return the seconds per photo of forward passes on random pixels, after one forward pass as warm-up."""
    import tensorflow as tf

    from components.candidates.architectures import ARCHITECTURES
    from components.candidates.backbone import build_network, pool_blocks

    blocks = pool_blocks(build_network(backbone, "random", side, seed=0), backbone, ARCHITECTURES[backbone].layers)
    embed = tf.function(functools.partial(blocks, training=False))
    pixels = tf.constant(np.random.default_rng(0).uniform(-1, 1, [batch, side, side, 3]), tf.float32)
    embed(pixels)
    passes = max(1, photos // batch)
    started = time.perf_counter()
    for _ in range(passes):
        {name: values.numpy() for name, values in embed(pixels).items()}
    return (time.perf_counter() - started) / (passes * batch)


def _record(progress: list[tuple[float, int]], component: str, node_id: str, unit: str, done: int, total: int) -> None:
    if (node_id, unit) == (component, "photos"):
        progress.append((time.perf_counter(), done))


def _in_new_process(work):
    """Call `work` in a new process, so that this one does not start TensorFlow, which executors could not fork."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def _enlarge(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    width, height = (round(length * LONG_SIDE / max(image.size)) for length in image.size)
    image.resize((width, height)).save(path, quality=JPEG_QUALITY)


def _table(costs: dict[str, Cost]) -> str:
    total = Cost(*map(sum, zip(*costs.values(), strict=True)))
    rows = [["backbone", "bare ms", "EmbeddingGen ms", "ratio", "start-up s"]]
    for name, cost in [*costs.items(), ("all", total)]:
        ratio = cost.embedding_gen / cost.bare
        rows.append([name, f"{cost.bare:.1f}", f"{cost.embedding_gen:.1f}", f"{ratio:.2f}", f"{cost.startup:.1f}"])
    return "\n".join("  ".join([f"{row[0]:<16}", *(f"{cell:>15}" for cell in row[1:])]) for row in rows)


def main() -> None:
    """Measure all backbones and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=2400, help="number of photos, including test")
    parser.add_argument("--side", type=int, default=224, help="side of the backbones' input image in pixels")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES, help="backbones to measure")
    parser.add_argument(
        "--bare-photos", type=int, default=320, help="number of photos in each measurement of the bare network"
    )
    arguments = parser.parse_args()
    restart_with_huge_pages()
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(arguments.photos, arguments.side, arguments.backbones, arguments.bare_photos, Path(folder))
    print(f"{arguments.photos} photos, {arguments.side} px, random weights, float32")
    print(_table(costs))


if __name__ == "__main__":
    main()
