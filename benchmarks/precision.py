"""Compare the precisions float32 and bfloat16: photos per second of each backbone, and predictions that differ.

    python benchmarks/precision.py --data cats --weights-dir weights

The backbones are those of the standard profile and the `.keras` files in the folder of the weights. Built-in backbones
without weights there have random weights, on which the speed does not depend.

    float32, bfloat16: photos per second, from their bytes to embeddings, in batches. The precisions alternate; each
        figure is the median over the rounds.
    same head: photos that get another breed if a model that was trained in float32 is computed in bfloat16.
    own head: photos that get another breed from a model that was trained and is computed in bfloat16 than from one
        that was trained and is computed in float32.
    difference: largest change in the probability of the predicted breed if a model that was trained in bfloat16 is
        computed in float32, as on a server without AMX.

Each photo is predicted by a logistic regression on all blocks that was fitted without the fold of the photo. The
penalty is the same for all, so that only the precision differs. The benchmark needs a CPU with AMX.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from quality import (
    Photos,
    backbones_in,
    build_heads,
    pipeline_nodes,
    read_photos,
    split_into_folds,
    standardized_records,
)
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types.standard_artifacts import Model
from tfx.utils import path_utils

from components.candidates.backbone import Backbone
from components.errors import DataError, WeightsError
from pipeline.node_ids import branch_node_id
from pipeline.settings import Settings, SettingsError
from serving import precision
from serving.precision import BFLOAT16, FLOAT32, PrecisionError

PRECISIONS = (FLOAT32, BFLOAT16)
L2 = 0.03


class Differences(NamedTuple):
    """Differences between the predictions of a backbone in both precisions; see the description of the columns."""

    same_head: int
    own_head: int
    difference: float


class Embedder:
    """A process that computes a backbone in one precision, which TensorFlow reads only once.

    Args:
        model_dir: Directory of the SavedModel of the backbone.
        precision_name: Precision of the process.
    """

    def __init__(self, model_dir: str, precision_name: str):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_embed_requests, args=(model_dir, precision_name, other), daemon=True)
        self._process.start()

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.send(None)
        self._process.join()

    def embed(self, images: list[bytes], batch_size: int) -> tuple[dict[str, np.ndarray], float]:
        """Return the embeddings of photos by name, float32 [n, d], and the seconds that they took."""
        self._connection.send((images, batch_size))
        return self._connection.recv()


def _embed_requests(model_dir: str, precision_name: str, connection) -> None:
    precision.use(precision_name)
    model = tf.saved_model.load(model_dir)
    signature = model.signatures["serving_default"]
    while request := connection.recv():
        images, batch_size = request
        batches = [tf.constant(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        started = time.perf_counter()
        outputs = [signature(image_bytes=batch) for batch in batches]
        embeddings = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        connection.send((embeddings, time.perf_counter() - started))


def build_backbone(node: BaseNode, folder: str) -> str:
    """Write the SavedModel of a component Backbone of the pipeline to `folder`; return its directory."""
    artifact = Model()
    artifact.uri = folder
    Backbone.test_call(artifact, **node.exec_properties)
    return path_utils.serving_model_path(folder)


def photos_per_second(
    embedders: dict[str, Embedder], images: list[bytes], batch_size: int, rounds: int
) -> dict[str, float]:
    """Measure the speed in each precision."""
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for number in range(rounds + 1):
        for name, embedder in embedders.items():
            measured = embedder.embed(images, batch_size)[1]
            if number:  # the first round is slower: TensorFlow prepares the graph
                seconds[name].append(measured)
    return {name: len(images) / statistics.median(values) for name, values in seconds.items()}


def differences(
    photos: Photos, embeddings: dict[str, dict[str, np.ndarray]], settings: Settings, folds: int
) -> Differences:
    """Compare the predictions of models that were trained in one precision and are computed in both.

    Args:
        photos: All photos.
        embeddings: Embeddings of all photos, by precision.
        settings: Settings of the run.
        folds: Number of folds.
    """
    count = len(photos.labels)
    twice = photos._replace(
        labels=np.tile(photos.labels, 2), content_hashes=2 * photos.content_hashes, groups=2 * photos.groups
    )
    probabilities = {trained: np.zeros((2, count, len(photos.breeds))) for trained in PRECISIONS}
    share = settings.split.eval / (settings.split.train + settings.split.eval)
    for split in split_into_folds(photos, folds, share, seed=0):
        for trained, other in (PRECISIONS, PRECISIONS[::-1]):
            # The statistics of the standardization are those of the photos in train, in the precision of the training.
            both = {
                name: np.concatenate([values, embeddings[other][name]]) for name, values in embeddings[trained].items()
            }
            records = standardized_records(twice, both, split.train)
            heads, _ = build_heads(records, split, len(photos.breeds), settings)
            predicted = heads["tuned"](records.embeddings, training=False).numpy().reshape(2, count, -1)
            probabilities[trained][:, split.test] = predicted[:, split.test]
    own, changed = probabilities[FLOAT32].argmax(axis=2)
    of_bfloat16 = probabilities[BFLOAT16][0].argmax(axis=1)
    rows = np.arange(count)
    computed, on_other_cpu = (served[rows, of_bfloat16] for served in probabilities[BFLOAT16])
    return Differences(
        same_head=int(np.sum(own != changed)),
        own_head=int(np.sum(own != of_bfloat16)),
        difference=float(np.abs(computed - on_other_cpu).max()),
    )


def backbones(weights_dir: Path) -> dict[str, tuple[str | dict, str]]:
    """Backbones to compare: name -> entry of the setting `backbones`, and the setting `weights`."""
    found = {entry if isinstance(entry, str) else entry["name"]: entry for entry in backbones_in(weights_dir)}
    built_in = {name: name for name in Settings().backbone_names}
    return {name: (entry, "imagenet" if name in found else "random") for name, entry in (built_in | found).items()}


def main() -> None:
    """Measure each backbone and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive of photos, with one folder per breed")
    parser.add_argument("--weights-dir", type=Path, required=True, help="folder with weights and .keras files")
    parser.add_argument("--photos", type=int, default=96, help="number of photos to measure the speed with")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each speed")
    parser.add_argument("--folds", type=int, default=6, help="number of folds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    arguments = parser.parse_args()
    precision.require(BFLOAT16)
    photos: Photos | None = None
    heading = f"{'backbone':<28}{'side':>6}{FLOAT32:>10}{BFLOAT16:>10}{'ratio':>7}"
    print(f"{heading}{'same head':>11}{'own head':>10}{'difference':>12}", flush=True)
    for name, (entry, weights) in backbones(arguments.weights_dir).items():
        settings, nodes = pipeline_nodes(
            [
                f"data={arguments.data}",
                f"backbones={json.dumps([entry])}",
                f"weights={weights}",
                *([f"weights_dir={arguments.weights_dir}"] if weights == "imagenet" else []),
                "tuner.kinds=[logistic_regression]",
                "tuner.blocks=[all]",
                f"tuner.l2=[{L2}]",
                *arguments.set,
            ]
        )
        photos = photos or read_photos(nodes["ImageExampleGen"], settings)
        batch_size = settings.beam.embedding_batch_size
        with tempfile.TemporaryDirectory() as folder:
            model_dir = build_backbone(nodes[branch_node_id("Backbone", name)], folder)
            with Embedder(model_dir, FLOAT32) as float32, Embedder(model_dir, BFLOAT16) as bfloat16:
                embedders = dict(zip(PRECISIONS, (float32, bfloat16), strict=True))
                speed = photos_per_second(embedders, photos.images[: arguments.photos], batch_size, arguments.rounds)
                row = f"{name:<28}{settings.image_size_of(name):>6}{speed[FLOAT32]:>10.1f}{speed[BFLOAT16]:>10.1f}"
                row += f"{speed[BFLOAT16] / speed[FLOAT32]:>7.2f}"
                if weights == "imagenet":
                    embeddings = {used: embedders[used].embed(photos.images, batch_size)[0] for used in PRECISIONS}
        if weights == "imagenet":
            found = differences(photos, embeddings, settings, arguments.folds)
            row += f"{found.same_head:>11}{found.own_head:>10}{found.difference:>12.3f}"
        print(row, flush=True)
    print(f"{len(photos.labels)} photos of {len(photos.breeds)} breeds, {arguments.folds} folds")


if __name__ == "__main__":
    try:
        main()
    except (DataError, PrecisionError, SettingsError, WeightsError) as error:
        sys.exit(f"error: {error}")
