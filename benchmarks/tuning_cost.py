"""Measure tuning and training the head of one backbone, compared with training on photos and with a lower bound.

    python benchmarks/tuning_cost.py --photos 1000 4000

The benchmark measures three durations for the same photos (train and eval) and the same Xception with random weights:

    recipe: the common recipe, in which every epoch of every trial decodes each photo and passes it through the frozen
        backbone to train the head: 30 Hyperband trials (120 epochs) and 30 epochs of final training. The benchmark
        measures one epoch over a subset of the photos, before and after the pipeline, and scales the mean to 150 epochs
        over all photos. It runs as most programs do, without the huge pages of `pipeline.huge_pages`.
    pipeline: EmbeddingGen, Transform, Tuner (30 Hyperband trials and 10 logistic regressions) and Trainer of the
        pipeline, on the last three blocks of the backbone.
    floor: decoding each photo and one forward pass through the backbone, in batches, without training or writing.

With more than one number of photos, the benchmark also prints the cost of each additional photo.

Results on 2 slow CPU cores, whose speed varied by 1.1 between the two epochs of the recipe:

    photos   recipe s   pipeline s   floor s   recipe/pipeline   pipeline/floor   40 trials s
      3434      16016        162.5     116.4              98.6             1.40          55.6

    EmbeddingGen 99.1 s, Transform 8.3 s, Tuner 45.1 s, Trainer 10.0 s

Results on 2 idle CPU cores, before the search had logistic regressions and the heads used three blocks:

    photos   recipe s   pipeline s   floor s   recipe/pipeline   pipeline/floor   30 trials s
       850       2325         48.2      15.3              48.2             3.15          17.2
      3397       9420        109.6      64.5              86.0             1.70          27.2

    each additional photo: pipeline 24.1 ms (EmbeddingGen 19.5, Transform 0.1, Tuner 4.1, Trainer 0.4), floor 19.3 ms,
    ratio 1.25
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
from pipeline_run import log, run_pipeline
from tfx.types.standard_component_specs import TUNER_RESULTS_KEY
from tfx.utils import path_utils

from components.candidates.embedding_features import feature_name
from components.candidates.trial_metrics import TRIAL_SECONDS
from components.file_names import TUNER_RESULTS_FILE
from components.json_files import read_json
from components.keras_config import keras
from pipeline import huge_pages
from pipeline.datasets.sample_data import write_sample_data
from pipeline.settings import load

BACKBONE = "xception"
MEASURED_COMPONENTS = ("EmbeddingGen", "Transform", "Tuner", "Trainer")
RECIPE_EPOCHS = 120 + 30
RECIPE_BATCH_SIZE = 32
BREEDS = 6


class Costs(NamedTuple):
    """Durations in seconds.

    Attributes:
        photos: Number of photos in train and eval.
        recipe: Duration of the recipe, scaled from a subset of the photos.
        components: Duration of each of MEASURED_COMPONENTS.
        trials: Number of trials, and the sum of their durations; solved and trained heads are tried at the same time.
        floor: Duration of one forward pass of each photo.
    """

    photos: int
    recipe: float
    components: dict[str, float]
    trials: tuple[int, float]
    floor: float

    @property
    def pipeline(self) -> float:
        """Total seconds of MEASURED_COMPONENTS."""
        return sum(self.components.values())


class Backbone:
    """The SavedModel of a backbone: bytes of n photos -> embeddings of the last block float32 [n, d]."""

    def __init__(self, artifact: str):
        self._model = tf.saved_model.load(path_utils.serving_model_path(artifact))  # keeps the signature alive
        self._signature = self._model.signatures["serving_default"]

    def __call__(self, photos: list[bytes]) -> tf.Tensor:
        """Embed one batch of photos."""
        return self._signature(image_bytes=tf.constant(photos))[feature_name(BACKBONE, 0)]


def measure(count: int, side: int, subset: int) -> Costs:
    """Measure the three durations, one after the other, on synthetic photos.

    Args:
        count: Number of photos, including test.
        side: Side of the input image of the backbone in pixels.
        subset: Maximum number of photos in the measured epochs of the recipe.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "photos"
        log(f"{count} photos: generating")
        write_sample_data(data, breeds=BREEDS, photos=count // BREEDS)
        overrides = [f"data={data}", f"workdir={folder}/runs", f"backbones=[{BACKBONE}]", "weights=random"]
        settings = load("standard", [*overrides, f"image_size={side}"])
        runs = run_pipeline(settings, last=f"Backbone-{BACKBONE}")
        examples = runs["ImageExampleGen"].outputs["examples"]
        artifact = runs[f"Backbone-{BACKBONE}"].outputs["model"]
        recipe = functools.partial(_recipe_epoch, artifact, examples, subset)
        before = _without_huge_pages(recipe)
        runs = run_pipeline(settings, last=f"Trainer-{BACKBONE}")
        after = _without_huge_pages(recipe)
        log(f"one epoch of the recipe: {1000 * before:.1f} ms per photo before, {1000 * after:.1f} ms after")
        photos, backbone = _read_photos(examples), Backbone(artifact)
        batch = settings.beam.embedding_batch_size
        backbone(photos[:batch])
        floor = _timed(lambda: [backbone(photos[start : start + batch]) for start in range(0, len(photos), batch)])
        log(f"floor: {floor:.1f} s")
        return Costs(
            photos=len(photos),
            recipe=(before + after) / 2 * len(photos) * RECIPE_EPOCHS,
            components={name: runs[f"{name}-{BACKBONE}"].seconds for name in MEASURED_COMPONENTS},
            trials=_trials(runs[f"Tuner-{BACKBONE}"].outputs[TUNER_RESULTS_KEY]),
            floor=floor,
        )


def _read_photos(examples: str) -> list[bytes]:
    """Return the bytes of the photos of train and eval."""
    files = [path for split in ("train", "eval") for path in tf.io.gfile.glob(f"{examples}/Split-{split}/*")]
    records = tf.data.TFRecordDataset(sorted(files)).as_numpy_iterator()
    return [tf.train.Example.FromString(r).features.feature["image_bytes"].bytes_list.value[0] for r in records]


def _without_huge_pages(work: Callable[[], float]) -> float:
    """Call `work` in a new process without huge pages, as most programs run."""
    with mock.patch.dict(os.environ), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        os.environ.pop(huge_pages.VARIABLE)
        return pool.submit(work).result()


def _recipe_epoch(artifact: str, examples: str, subset: int) -> float:
    """Seconds per photo of one epoch in which each batch is embedded and then trains the head, after a first batch.

    Args:
        artifact: Path of the backbone.
        examples: Path of the photos.
        subset: Maximum number of photos.
    """
    backbone, photos = Backbone(artifact), _read_photos(examples)[:subset]
    head = keras.Sequential(
        [
            keras.Input([backbone(photos[:1]).shape[-1]]),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(100, "relu"),
            keras.layers.Dense(BREEDS, "softmax"),
        ]
    )
    head.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")

    def train(batch: list[bytes]) -> None:
        head.train_on_batch(backbone(batch), np.zeros(len(batch), np.int64))

    train(photos[:RECIPE_BATCH_SIZE])
    batches = [photos[start : start + RECIPE_BATCH_SIZE] for start in range(0, len(photos), RECIPE_BATCH_SIZE)]
    return _timed(lambda: [train(batch) for batch in batches]) / len(photos)


def _trials(tuner_results: str) -> tuple[int, float]:
    """Return the number of trials and their total duration in seconds."""
    rows = read_json(tuner_results, TUNER_RESULTS_FILE)
    return len(rows), sum(row[TRIAL_SECONDS] for row in rows)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _table(costs: list[Costs]) -> str:
    names = [
        *("photos", "recipe s", "pipeline s", "floor s", "recipe/pipeline", "pipeline/floor", "ms/photo"),
        *("trials", "trials s"),
    ]
    rows = [
        [
            f"{cost.photos}",
            f"{cost.recipe:.0f}",
            f"{cost.pipeline:.1f}",
            f"{cost.floor:.1f}",
            f"{cost.recipe / cost.pipeline:.1f}",
            f"{cost.pipeline / cost.floor:.2f}",
            f"{1000 * cost.pipeline / cost.photos:.1f}",
            f"{cost.trials[0]}",
            f"{cost.trials[1]:.1f}",
        ]
        for cost in costs
    ]
    return "\n".join("  ".join(f"{cell:>15}" for cell in row) for row in [names, *rows])


def _components_line(cost: Costs) -> str:
    return f"pipeline, {cost.photos} photos: " + ", ".join(f"{name} {s:.1f} s" for name, s in cost.components.items())


def _marginal_line(few: Costs, many: Costs) -> str:
    """Describe the cost of each additional photo between `few` and `many`."""

    def per_photo(fewer: float, more: float) -> float:
        return 1000 * (more - fewer) / (many.photos - few.photos)

    pipeline, floor = per_photo(few.pipeline, many.pipeline), per_photo(few.floor, many.floor)
    components = ", ".join(
        f"{name} {per_photo(few.components[name], many.components[name]):.1f}" for name in MEASURED_COMPONENTS
    )
    return (
        f"each additional photo from {few.photos} to {many.photos}: pipeline {pipeline:.1f} ms ({components}), "
        f"floor {floor:.1f} ms, ratio {pipeline / floor:.2f}"
    )


def main() -> None:
    """Measure each number of photos and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[1000], help="numbers of photos, including test")
    parser.add_argument("--side", type=int, default=128, help="side of the backbone's input image in pixels")
    parser.add_argument("--subset", type=int, default=640, help="maximum number of photos in the measured epochs")
    arguments = parser.parse_args()
    huge_pages.restart_with_huge_pages()
    costs = [measure(count, arguments.side, arguments.subset) for count in sorted(arguments.photos)]
    print(f"{BACKBONE}, random weights, {arguments.side} px; photos of train and eval")
    print(f"recipe: scaled from two epochs over at most {arguments.subset} photos to {RECIPE_EPOCHS} epochs over all")
    print(_table(costs))
    for cost in costs:
        print(_components_line(cost))
    if len(costs) > 1:
        print(_marginal_line(costs[0], costs[-1]))


if __name__ == "__main__":
    main()
