"""Everything that a run found, gathered from what its components wrote; the report is made of it."""

import base64
import importlib.metadata
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from components.documents import read_json
from components.measured import read_measured
from components.provenance import git_commit
from components.training_records import TRAINING_FILE, TUNER_RESULTS_FILE
from serving.model_record import RECORD_FILE
from serving.registry import Registry

_TOLD_VERSIONS = ("tensorflow", "keras", "tfx", "apache-beam", "pillow")
_WORST = 12
_THUMBNAIL_SIDE = 160


class Sources(NamedTuple):
    """URIs of the artifacts of one run.

    Attributes:
        ingest, verdict, examples, comparison, winner, evaluation, decision, pushed: of the components that write them;
            `evaluation` is that of the winner on test.
        training: backbone -> the Trainer's model_run.
        trials: backbone -> the Tuner's results.
    """

    ingest: str
    verdict: str
    examples: str
    comparison: str
    winner: str
    evaluation: str
    decision: str
    pushed: str
    training: dict[str, str]
    trials: dict[str, str]


def gather(sources: Sources, registry: str | Path, run_id: str, settings: str) -> dict[str, Any]:
    """The documents of a run; see `components.report_page`.

    Args:
        sources: of the run.
        registry: base path of the pushed models.
        run_id: of the run.
        settings: of the run, in YAML.
    """
    gate = read_json(sources.decision, "gate.json")
    push = read_json(sources.pushed, "push.json")
    if gate["blessed"] and push["version"] is None:
        existing = push["already_pushed_as"]
        gate.update(outcome="nothing_new", blessed=False)
        gate["reasons"].append(f"the same model is already in the registry as version {existing}")
    gate |= {"run": run_id, "pushed_version": push["version"], "serving": Registry(registry).labels()}
    comparison = read_json(sources.comparison, "comparison.json")
    backbones = [row["backbone"] for row in comparison["candidates"]]
    ingest = read_json(sources.ingest, "report.json")
    measured = read_measured(sources.evaluation)
    return {
        "run_id": run_id,
        "verdict": verdict(gate),
        "comparison": comparison,
        "gate": gate,
        "ingest": ingest,
        "left_out": left_out_by_kind(ingest),
        "data": read_json(sources.verdict, "verdict.json"),
        "training": {name: read_json(sources.training[name], TRAINING_FILE) for name in backbones},
        "trials": {name: read_json(sources.trials[name], TUNER_RESULTS_FILE) for name in backbones},
        "objective": yaml.safe_load(settings)["tuner"]["objective"],
        "test": measured.metrics,
        "worst": _worst(measured.outcomes, f"{sources.examples}/Split-test"),
        "record": read_json(f"{sources.winner}/Format-Serving", RECORD_FILE),
        "random": is_random(comparison),
        "settings": settings,
        "commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in _TOLD_VERSIONS},
    }


def settings_of_run(settings: str, data: str, weights_dir: str, registry: str, rules: dict[str, Any]) -> str:
    """Settings in YAML with what the run was given instead; a profile that makes the same run on one machine."""
    values = yaml.safe_load(settings) | {
        "data": data,
        "weights_dir": weights_dir or None,
        "workdir": os.path.dirname(os.path.dirname(registry)),
        "gate": rules,
    }
    return yaml.safe_dump(values, sort_keys=False)


def verdict(gate: dict[str, Any]) -> str:
    """The gate's decision as a sentence."""
    if gate["pushed_version"] is not None:
        return f"Admitted: pushed as version {gate['pushed_version']}."
    if gate["outcome"] == "nothing_new":
        return "Nothing new: no model was pushed."
    return "Refused: no model was pushed, what is in service stays."


def left_out_by_kind(ingest: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Kind in plain words -> the files of that kind."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in ingest["left_out"]:
        groups.setdefault(row["kind"].replace("_", " "), []).append(row)
    return dict(sorted(groups.items()))


def is_random(comparison: dict[str, Any]) -> bool:
    """Whether a backbone has random weights."""
    return any(row["weights"] == "random" for row in comparison["candidates"])


def _worst(outcomes: list[dict[str, Any]], examples: str) -> list[dict[str, Any]]:
    """The photos that were most surely taken for another breed, with `image`, a small JPEG as a data URL."""
    import tensorflow as tf

    wrong = sorted((row for row in outcomes if not row["correct"]), key=lambda row: -row["confidence"])
    wanted = {row["content_hash"]: row for row in wrong[:_WORST]}
    images = {}
    for record in tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(f"{examples}/*"))).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        content_hash = features["content_hash"].bytes_list.value[0].decode()
        if content_hash in wanted:
            images[content_hash] = _thumbnail(features["image_bytes"].bytes_list.value[0])
    return [{**row, "image": images[content_hash]} for content_hash, row in wanted.items()]


def _thumbnail(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
