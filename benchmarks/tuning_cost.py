"""What tuning and training one backbone's head costs, beside the seed project's recipe and beside the least possible.

    python benchmarks/tuning_cost.py --images 1000 4000

Three costs, of the same photos (the train and eval splits) through the same Xception with random weights:

    recipe: the seed project's. Each epoch of each trial decodes every photo and passes it through the frozen backbone,
        while the head learns: 30 Hyperband trials (120 epochs) and 30 epochs of final training. One epoch over a slice
        of the photos is measured and scaled to 150 epochs over all.
    ours: the pipeline's EmbeddingGen, Transform, Tuner (the same 30 trials) and Trainer.
    floor: each photo decoded and passed through the backbone once, in batches; nothing is learned or written.

With more than one number of images, also what each further photo costs.

Measured by that command on 2 CPU cores that did nothing else:

    photos   recipe s   ours s   floor s   recipe/ours   ours/floor   30 trials s
       850       2325     48.2      15.3          48.2         3.15          17.2
      3397       9420    109.6      64.5          86.0         1.70          27.2

    each further photo: ours 24.1 ms (EmbeddingGen 19.5, Transform 0.1, Tuner 4.1, Trainer 0.4), floor 19.3 ms: 1.25
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

import numpy as np
import tensorflow as tf
from tfx.types.standard_component_specs import TUNER_RESULTS_KEY
from tfx.utils import path_utils

from components.candidates.trial_metrics import TRIAL_SECONDS
from components.file_names import TUNER_RESULTS_FILE
from components.json_files import read_json
from pipeline.datasets.sample_data import write_sample_data
from pipeline.graph import create_pipeline
from pipeline.modules.head import build_head
from pipeline.run_context import local_run_context
from pipeline.runners import local as local_runner
from pipeline.runners.local import NodeRun
from pipeline.settings import Settings, load

BACKBONE = "xception"
COUNTED = ("EmbeddingGen", "Transform", "Tuner", "Trainer")
RECIPE_EPOCHS = 120 + 30
BATCH = 32
BREEDS = 6


class Costs(NamedTuple):
    """Seconds for `photos` photos.

    Attributes:
        photos: in train and eval together.
        recipe: scaled from a slice.
        nodes: seconds of each of COUNTED.
        trials: how many, and their seconds together.
        floor: seconds.
    """

    photos: int
    recipe: float
    nodes: dict[str, float]
    trials: tuple[int, float]
    floor: float

    @property
    def ours(self) -> float:
        """Seconds of all that is counted."""
        return sum(self.nodes.values())


class Backbone:
    """A backbone's SavedModel: bytes of photos -> embeddings float32 [n, d]."""

    def __init__(self, artifact: str):
        self._model = tf.saved_model.load(path_utils.serving_model_path(artifact))  # keeps the signature alive
        self._signature = self._model.signatures["serving_default"]

    def __call__(self, photos: list[bytes]) -> tf.Tensor:
        """Embeds one batch."""
        return self._signature(image_bytes=tf.constant(photos))["embedding"]


def measure(images: int, side: int, sliced: int) -> Costs:
    """The three costs, one after the other, on generated photos."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "photos"
        _say(f"{images} images: drawing them")
        write_sample_data(data, breeds=BREEDS, photos=images // BREEDS)
        overrides = [f"data={data}", f"workdir={folder}/runs", f"backbones=[{BACKBONE}]", "weights=random"]
        settings = load("standard", [*overrides, f"image_size={side}"])
        runs = _run_until_trained(settings)
        photos = _read_photos(runs["ImageExampleGen"].outputs["examples"])
        backbone = Backbone(runs[f"Backbone-{BACKBONE}"].outputs["model"])
        batch = settings.beam.embedding_batch_size
        backbone(photos[:batch])
        floor = _timed(lambda: [backbone(photos[start : start + batch]) for start in range(0, len(photos), batch)])
        _say(f"floor: {floor:.1f} s")
        part = photos[:sliced]
        epoch = _recipe_epoch(backbone, part)
        _say(f"one epoch of the recipe over {len(part)} photos: {epoch:.1f} s")
        return Costs(
            photos=len(photos),
            recipe=epoch / len(part) * len(photos) * RECIPE_EPOCHS,
            nodes={name: runs[f"{name}-{BACKBONE}"].seconds for name in COUNTED},
            trials=_trials(runs[f"Tuner-{BACKBONE}"].outputs[TUNER_RESULTS_KEY]),
            floor=floor,
        )


class _Trained(Exception):
    """The Trainer is done: what comes after it is not measured."""


class _UntilTrained:
    """Follows a run and ends it after the Trainer.

    Attributes:
        runs: node id -> what became of it.
    """

    def __init__(self):
        self.runs: dict[str, NodeRun] = {}

    def on_start(self, node_id: str, total: int) -> None:
        """See `local_runner.Listener`."""

    def on_progress(self, node_id: str, what: str, done: int, total: int | None) -> None:
        """See `local_runner.Listener`."""

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """See `local_runner.Listener`."""

    def on_finish(self, run: NodeRun) -> None:
        """See `local_runner.Listener`."""
        self.runs[run.node_id] = run
        _say(f"{run.node_id}: {run.seconds:.1f} s")
        if run.node_id == f"Trainer-{BACKBONE}":
            raise _Trained


def _run_until_trained(settings: Settings) -> dict[str, NodeRun]:
    """Runs the pipeline up to the Trainer: node id -> what became of it."""
    config = local_runner.metadata_config(settings.workdir)
    follower = _UntilTrained()
    graph = create_pipeline(settings, local_run_context(settings, "benchmark"), config)
    with contextlib.suppress(_Trained):
        local_runner.run(graph, "benchmark", follower, Path(settings.workdir) / "logs", workers=1)
    return follower.runs


def _read_photos(examples: str) -> list[bytes]:
    """The bytes of the photos of train and eval."""
    files = [path for split in ("train", "eval") for path in tf.io.gfile.glob(f"{examples}/Split-{split}/*")]
    records = tf.data.TFRecordDataset(sorted(files)).as_numpy_iterator()
    return [tf.train.Example.FromString(r).features.feature["image_bytes"].bytes_list.value[0] for r in records]


def _recipe_epoch(backbone: Backbone, photos: list[bytes]) -> float:
    """Seconds of one epoch: the head learns from each batch as it leaves the backbone. A first batch is not counted."""
    size = backbone(photos[:1]).shape[-1]
    head = build_head(size, BREEDS, {"units": 100, "dropout": 0.5, "learning_rate": 1e-3, "weight_decay": 0.0})
    head.compile(head.optimizer, loss=head.loss)  # one step a call, as the photos come

    def learn(batch: list[bytes]) -> None:
        head.train_on_batch(backbone(batch), np.zeros(len(batch), np.int64))

    learn(photos[:BATCH])
    return _timed(lambda: [learn(photos[start : start + BATCH]) for start in range(0, len(photos), BATCH)])


def _trials(tuner_results: str) -> tuple[int, float]:
    """Number of trials and the sum of their seconds."""
    rows = read_json(tuner_results, TUNER_RESULTS_FILE)
    return len(rows), sum(row[TRIAL_SECONDS] for row in rows)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(costs: list[Costs]) -> str:
    names = ["photos", "recipe s", "ours s", "floor s", "recipe/ours", "ours/floor", "ms/photo", "trials", "trials s"]
    rows = [
        [
            f"{cost.photos}",
            f"{cost.recipe:.0f}",
            f"{cost.ours:.1f}",
            f"{cost.floor:.1f}",
            f"{cost.recipe / cost.ours:.1f}",
            f"{cost.ours / cost.floor:.2f}",
            f"{1000 * cost.ours / cost.photos:.1f}",
            f"{cost.trials[0]}",
            f"{cost.trials[1]:.1f}",
        ]
        for cost in costs
    ]
    return "\n".join("  ".join(f"{cell:>11}" for cell in row) for row in [names, *rows])


def _nodes_line(cost: Costs) -> str:
    return f"ours, {cost.photos} photos: " + ", ".join(f"{name} {s:.1f} s" for name, s in cost.nodes.items())


def _marginal_line(few: Costs, many: Costs) -> str:
    """What each photo beyond `few` costs."""

    def per_photo(fewer: float, more: float) -> float:
        return 1000 * (more - fewer) / (many.photos - few.photos)

    ours, floor = per_photo(few.ours, many.ours), per_photo(few.floor, many.floor)
    nodes = ", ".join(f"{name} {per_photo(few.nodes[name], many.nodes[name]):.1f}" for name in COUNTED)
    return (
        f"each photo from {few.photos} to {many.photos}: ours {ours:.1f} ms ({nodes}), floor {floor:.1f} ms, "
        f"ratio {ours / floor:.2f}"
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000], help="photos drawn; test's share is not used")
    parser.add_argument("--side", type=int, default=128, help="side in pixels of what the backbone sees")
    parser.add_argument("--slice", type=int, default=320, help="most photos in the measured epoch of the recipe")
    arguments = parser.parse_args()
    costs = [measure(images, arguments.side, arguments.slice) for images in sorted(arguments.images)]
    print(f"{BACKBONE}, random weights, {arguments.side} px; photos of train and eval")
    print(f"recipe: scaled from one epoch over at most {arguments.slice} photos to {RECIPE_EPOCHS} epochs over all")
    print(_table(costs))
    for cost in costs:
        print(_nodes_line(cost))
    if len(costs) > 1:
        print(_marginal_line(costs[0], costs[-1]))


if __name__ == "__main__":
    main()
