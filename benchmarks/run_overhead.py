"""Measure the duration of a complete run, compared with the duration of its unavoidable computation.

    python benchmarks/run_overhead.py --photos 240 2400

The benchmark measures two durations for each number of synthetic photos, with the demo profile (three backbones with
random weights at 71 px):

    run: `catbreeds run`, from the start to the end of the command.
    floor: one forward pass of each photo of train and eval through each backbone, in batches, plus the trials of the
        hyperparameter searches, without any imports, loading, validation, writing, evaluation or serving.

Below the table it prints the duration of each component. Components of different branches overlap in time.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from components.json_files import read_json
from pipeline.datasets.sample_data import write_sample_data
from pipeline.settings import load

BREEDS = 6
CATBREEDS = Path(sys.executable).with_name("catbreeds")
_COMPONENT_LINE = re.compile(r"\[ *\d+/\d+\] (?P<node>\S+) +run +(?P<seconds>[\d.]+) s")


class Costs(NamedTuple):
    """Durations of one run in seconds.

    Attributes:
        photos: Number of photos.
        run: Duration of the command.
        components: Duration of each component.
        passes: Duration of the forward passes through all backbones.
        trials: Duration of the trials of all searches.
    """

    photos: int
    run: float
    components: dict[str, float]
    passes: float
    trials: float

    @property
    def floor(self) -> float:
        """Seconds of unavoidable computation."""
        return self.passes + self.trials


def measure(photos: int, backbones: list[str]) -> Costs:
    """Run the pipeline on `photos` synthetic photos, then only its forward passes."""
    with tempfile.TemporaryDirectory() as folder:
        data, workdir = Path(folder) / "photos", Path(folder) / "runs"
        _log(f"{photos} photos: generating")
        write_sample_data(data, breeds=BREEDS, photos=photos // BREEDS)
        command = [CATBREEDS, "run", "--profile", "demo", "--data", data, "--workdir", workdir]
        command += ["--set", f"backbones=[{','.join(backbones)}]"]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode not in (0, 3):  # 3: rejected by the gate, which does not matter here
            sys.exit(done.stdout)
        _log(f"run: {seconds:.1f} s")
        comparison = read_json(str(workdir / "report"), "comparison.json")
        return Costs(
            photos,
            seconds,
            {row["node"]: float(row["seconds"]) for row in _COMPONENT_LINE.finditer(done.stdout)},
            sum(_forward_pass_seconds(workdir / "artifacts", backbone) for backbone in backbones),
            sum(row["tuning_seconds"] for row in comparison["candidates"]),
        )


def _forward_pass_seconds(artifacts: Path, backbone: str) -> float:
    """Seconds of the forward passes of train and eval through a loaded and warmed-up backbone."""
    (model,) = artifacts.glob(f"Backbone-{backbone}/model/*/Format-Serving")
    files = [
        str(file) for split in ("train", "eval") for file in artifacts.glob(f"ImageExampleGen/*/*/Split-{split}/*")
    ]
    records = tf.data.TFRecordDataset(sorted(files)).as_numpy_iterator()
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    photos = [example["image_bytes"].bytes_list.value[0] for example in examples]
    batch = load("demo").beam.embedding_batch_size
    loaded = tf.saved_model.load(str(model))
    embed = loaded.signatures["serving_default"]
    embed(image_bytes=tf.constant(photos[:batch]))
    started = time.perf_counter()
    for start in range(0, len(photos), batch):
        embed(image_bytes=tf.constant(photos[start : start + batch]))
    seconds = time.perf_counter() - started
    _log(f"{backbone}: {len(photos)} photos in {seconds:.1f} s")
    return seconds


def _table(costs: list[Costs]) -> str:
    rows = [["photos", "run s", "floor s", "run/floor", "passes s", "trials s"]]
    for cost in costs:
        seconds = [cost.run, cost.floor, cost.run / cost.floor, cost.passes, cost.trials]
        rows.append([str(cost.photos), *(f"{value:.1f}" for value in seconds)])
    return "\n".join("".join(f"{cell:>11}" for cell in row) for row in rows)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure each number of photos and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[240, 2400], help="numbers of photos")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=list(load("demo").backbones),
        help="backbones to run; default: those of the demo profile",
    )
    arguments = parser.parse_args()
    costs = [measure(photos, arguments.backbones) for photos in sorted(arguments.photos)]
    print(_table(costs))
    for cost in costs:
        print(f"\nseconds of each component with {cost.photos} photos:")
        for node, seconds in sorted(cost.components.items(), key=lambda row: -row[1]):
            print(f"{seconds:>8.1f}  {node}")


if __name__ == "__main__":
    main()
