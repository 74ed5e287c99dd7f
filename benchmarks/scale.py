"""Measure how the time and the memory of the components grow with the number of photos, and extrapolate both.

    python benchmarks/scale.py --photos 240 2400 24000

For each number of synthetic photos the benchmark runs the whole pipeline with the search space of the standard profile
(or another `--profile`), random weights and small images, one component at a time. For each step it prints:

    s: duration.
    CPU s: CPU time, summed over all cores and over the processes that the component starts.
    MB: largest resident memory of the component's process or of a process that it starts. Importing TensorFlow and TFX
        takes the first few hundred megabytes.
    growth: CPU time of an additional photo between the two largest numbers of photos, divided by that between the two
        smallest ones. Above 1, the step grows faster than linearly.

The extrapolation adds the CPU time and memory of the additional photos, as measured between the two largest numbers of
photos, to those of the largest one. EfficientNetB7 is left out with more than 10,000 photos. Generating the photos is
not part of any step. docs/operations.md has results.
"""

import argparse
import contextlib
import functools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline_run import log, run_pipeline

from components.json_files import read_json, write_json
from pipeline.datasets.sample_data import write_sample_data
from pipeline.runners.local import NodeRun
from pipeline.settings import load

BREEDS = 6
# Components that read each photo or each embedding, and whether Beam distributes them.
DISTRIBUTED = {
    "ImageExampleGen": True,
    "StatisticsGen": True,
    "EmbeddingGen": True,
    "Transform": True,
    "Tuner": False,
    "Trainer": False,
    "Evaluator": True,
}
OTHERS = "all others"
_PHOTOS_PER_TASK = 50
_COSTS_FILE = "costs.json"
_EXPENSIVE, _MAX_PHOTOS_OF_EXPENSIVE = "efficientnetb7", 10_000


class Cost(NamedTuple):
    """Cost of a step.

    Attributes:
        seconds: Duration in seconds.
        cpu_seconds: CPU time in seconds.
        megabytes: Largest resident memory in 10^6 bytes.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float


UNITS = dict(zip(Cost._fields, ("s", "CPU s", "MB"), strict=True))


def measure(photos: int, side: int, backbones: list[str], profile: str, folder: Path) -> dict[str, Cost]:
    """Return the cost of each step for `photos` photos.

    Args:
        photos: Number of photos.
        side: Side of the input image of the backbones in pixels.
        backbones: Names of the backbones.
        profile: Profile whose other settings are used, such as the search space.
        folder: Folder for the photos, the workdir and the costs. Components that an earlier call completed are taken
            from the cache of the workdir, and keep the cost that this call measured.
    """
    used = [name for name in backbones if name != _EXPENSIVE or photos <= _MAX_PHOTOS_OF_EXPENSIVE]
    started = time.perf_counter()
    _generate(folder / "photos", photos)
    log(f"{photos} photos: generated in {time.perf_counter() - started:.0f} s")
    overrides = [f"data={folder / 'photos'}", f"workdir={folder / 'workdir'}", f"image_size={side}"]
    overrides += [f"backbones=[{','.join(used)}]", "weights=random", "ensemble=false"]
    costs = read_json(str(folder), _COSTS_FILE) if (folder / _COSTS_FILE).exists() else {}

    def record(run: NodeRun) -> None:
        if run.usage:
            costs[run.node_id] = run.seconds, run.usage.cpu_seconds, run.usage.peak_memory / 1e6
            write_json(str(folder), _COSTS_FILE, costs)

    runs = run_pipeline(load(profile, overrides), record=record)
    return _by_step({node: Cost(*costs[node]) for node in runs})


def _generate(folder: Path, photos: int) -> None:
    """Write synthetic photos; existing ones are kept."""
    of_breed = photos // BREEDS
    with multiprocessing.Pool() as pool:
        tasks = [(min(_PHOTOS_PER_TASK, of_breed - first), first) for first in range(0, of_breed, _PHOTOS_PER_TASK)]
        pool.starmap(functools.partial(_write_photos, folder), tasks)


def _write_photos(folder: Path, photos: int, offset: int) -> None:
    write_sample_data(folder, breeds=BREEDS, photos=photos, offset=offset)


def _by_step(costs: dict[str, Cost]) -> dict[str, Cost]:
    """Combine the components that are not in `DISTRIBUTED` into one step: sums of times, largest memory."""
    steps = {node: cost for node, cost in costs.items() if node.partition("-")[0] in DISTRIBUTED}
    others = Cost(*zip(*(cost for node, cost in costs.items() if node not in steps), strict=True))
    steps[OTHERS] = Cost(sum(others.seconds), sum(others.cpu_seconds), max(others.megabytes))
    return steps


class _PerPhoto(NamedTuple):
    """Costs of an additional photo: CPU time in seconds and memory in megabytes."""

    cpu_seconds: float
    megabytes: float


def _per_photo(few: tuple[int, Cost], many: tuple[int, Cost]) -> _PerPhoto:
    photos, more = many[0] - few[0], many[1]
    return _PerPhoto(*(max(0.0, getattr(more, name) - getattr(few[1], name)) / photos for name in _PerPhoto._fields))


def _cost_table(steps: dict[str, dict[int, Cost]], sizes: list[int]) -> Iterator[str]:
    yield "".join([f"{'photos':<28}", *(f"{size:^26,}" for size in sizes)])
    units = [f"{unit:>8}" + "  " * (unit == "MB") for _ in sizes for unit in UNITS.values()]
    yield "".join([f"{'step':<28}", *units, "  growth"])
    for step, costs in steps.items():
        cells = [f"{step:<28}"]
        for size in sizes:
            cost = costs.get(size)
            cells += [" " * 26] if cost is None else [*(f"{value:>8.1f}" for value in cost[:2]), f"{cost[2]:>8.0f}  "]
        points = sorted(costs.items())
        if len(points) > 2:
            first, last = _per_photo(*points[:2]).cpu_seconds, _per_photo(*points[-2:]).cpu_seconds
            cells.append(f"{last / first:>8.2f}" if first > 0 else "")
        yield "".join(cells).rstrip()


def _extrapolation(steps: dict[str, dict[int, Cost]], target: int) -> Iterator[str]:
    yield f"{'step':<28}{'CPU ms/photo':>14}{'kB/photo':>10}{'core-hours':>12}{'GB':>8}  runs on"
    for step, costs in steps.items():
        points = sorted(costs.items())
        if len(points) == 1:
            continue
        size, cost = points[-1]
        photo = _per_photo(*points[-2:])
        more = target - size
        hours = (cost.cpu_seconds + more * photo.cpu_seconds) / 3600
        gigabytes = (cost.megabytes + more * photo.megabytes) / 1000
        place = "Beam workers" if DISTRIBUTED.get(step.partition("-")[0]) else "one process"
        yield (
            f"{step:<28}{1000 * photo.cpu_seconds:>14.2f}{1000 * photo.megabytes:>10.1f}{hours:>12.1f}"
            f"{gigabytes:>8.1f}  {place}"
        )


def main() -> None:
    """Measure each number of photos and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[240, 2400, 24000], help="numbers of photos")
    parser.add_argument("--side", type=int, default=71, help="side of the backbones' input image in pixels")
    parser.add_argument(
        "--backbones", nargs="+", default=list(load("demo").backbones), help="backbones; default: those of the demo"
    )
    parser.add_argument("--profile", default="standard", help="profile of the other settings, such as the search space")
    parser.add_argument("--target", type=int, default=1_000_000, help="number of photos to extrapolate to")
    parser.add_argument(
        "--folder", type=Path, help="keep everything in this folder; a later call continues where an earlier one ended"
    )
    arguments = parser.parse_args()
    sizes = sorted(arguments.photos)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        choices = arguments.side, arguments.backbones, arguments.profile
        costs = {size: measure(size, *choices, folder / str(size)) for size in sizes}
    names = dict.fromkeys(step for size in sizes for step in costs[size])
    steps = {name: {size: costs[size][name] for size in sizes if name in costs[size]} for name in names}
    print(f"random weights, {arguments.side} px, one component at a time")
    print("\n".join(_cost_table(steps, sizes)))
    if len(sizes) > 1:
        print(f"\nextrapolation to {arguments.target:,} photos; with Beam workers, memory is divided among them")
        print("\n".join(_extrapolation(steps, arguments.target)))


if __name__ == "__main__":
    main()
