"""What a whole run takes, beside the least that its work could take.

    python benchmarks/run_overhead.py --photos 240 2400

Two times, for each number of drawn photos, of the demo's profile (three backbones with random weights at 71 px):

    run: `catbreeds run`, from the start of the command to its end.
    floor: each photo of train and eval through each backbone once, in batches, and the trials of the searches; nothing
        is imported, loaded, checked, written, evaluated or served.

Below the table, the seconds of each component; those of different branches overlap.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

import tensorflow as tf

from components.json_files import read_json
from pipeline.datasets.sample_data import write_sample_data
from pipeline.settings import load

BREEDS = 6
CATBREEDS = Path(sys.executable).with_name("catbreeds")
_LINE = re.compile(r"\[ *\d+/\d+\] (?P<node>\S+) +run +(?P<seconds>[\d.]+) s")


class Costs(NamedTuple):
    """Seconds of one run.

    Attributes:
        photos: drawn.
        run: of the whole command.
        components: of each component.
        passes: of the photos through the backbones, alone.
        trials: of all searches.
    """

    photos: int
    run: float
    components: dict[str, float]
    passes: float
    trials: float

    @property
    def floor(self) -> float:
        """Seconds of the work itself."""
        return self.passes + self.trials


def measure(photos: int, backbones: list[str]) -> Costs:
    """Runs the pipeline on so many photos, then its forward passes alone."""
    with tempfile.TemporaryDirectory() as folder:
        data, workdir = Path(folder) / "photos", Path(folder) / "runs"
        _say(f"{photos} photos: drawing them")
        write_sample_data(data, breeds=BREEDS, photos=photos // BREEDS)
        command = [CATBREEDS, "run", "--profile", "demo", "--data", data, "--workdir", workdir]
        command += ["--set", f"backbones=[{','.join(backbones)}]"]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode not in (0, 3):  # what the gate decides is not what this is about
            sys.exit(done.stdout)
        _say(f"run: {seconds:.1f} s")
        comparison = read_json(str(workdir / "report"), "comparison.json")
        return Costs(
            photos,
            seconds,
            {row["node"]: float(row["seconds"]) for row in _LINE.finditer(done.stdout)},
            sum(_passes(workdir / "artifacts", row["backbone"]) for row in comparison["candidates"]),
            sum(row["tuning_seconds"] for row in comparison["candidates"]),
        )


def _passes(artifacts: Path, backbone: str) -> float:
    """Seconds of the photos of train and eval through a backbone that is loaded and warm."""
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
    _say(f"{backbone}: {len(photos)} photos in {seconds:.1f} s")
    return seconds


def _table(costs: list[Costs]) -> str:
    rows = [["photos", "run s", "floor s", "run/floor", "passes s", "trials s"]]
    for cost in costs:
        seconds = [cost.run, cost.floor, cost.run / cost.floor, cost.passes, cost.trials]
        rows.append([str(cost.photos), *(f"{value:.1f}" for value in seconds)])
    return "\n".join("".join(f"{cell:>11}" for cell in row) for row in rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[240, 2400], help="numbers of photos to draw")
    parser.add_argument("--backbones", nargs="+", default=list(load("demo").backbones), help="the demo's by default")
    arguments = parser.parse_args()
    costs = [measure(photos, arguments.backbones) for photos in sorted(arguments.photos)]
    print(_table(costs))
    for cost in costs:
        print(f"\nseconds of each component, {cost.photos} photos:")
        for node, seconds in sorted(cost.components.items(), key=lambda row: -row[1]):
            print(f"{seconds:>8.1f}  {node}")


if __name__ == "__main__":
    main()
