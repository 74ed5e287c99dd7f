"""Everything that a run found, gathered from what its components wrote; the report is made of it."""

import importlib.metadata
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.digests import git_commit
from components.evaluation_result import read_evaluation_result
from components.file_names import (
    COMPARISON_FILE,
    GATE_FILE,
    INGEST_REPORT_FILE,
    PUSH_FILE,
    TRAINING_FILE,
    TUNER_RESULTS_FILE,
    VERDICT_FILE,
)
from components.json_files import read_json
from components.photo_examples import read_images, thumbnail_data_url
from serving.model_files import MODEL_RECORD_FILE
from serving.registry import Registry

_TOLD_VERSIONS = ("tensorflow", "keras", "tfx", "apache-beam", "pillow")
_WORST = 12


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
    """The documents of a run; see `components.reporting.report_page`.

    Args:
        sources: of the run.
        registry: base path of the pushed models.
        run_id: of the run.
        settings: of the run, in YAML.
    """
    gate = read_json(sources.decision, GATE_FILE)
    push = read_json(sources.pushed, PUSH_FILE)
    if gate["blessed"] and push["version"] is None:
        existing = push["already_pushed_as"]
        gate.update(outcome="nothing_new", blessed=False)
        gate["reasons"].append(f"the same model is already in the registry as version {existing}")
    gate |= {"run": run_id, "pushed_version": push["version"], "serving": Registry(registry).labels()}
    comparison = read_json(sources.comparison, COMPARISON_FILE)
    backbones = [row["backbone"] for row in comparison["candidates"]]
    ingest = read_json(sources.ingest, INGEST_REPORT_FILE)
    measured = read_evaluation_result(sources.evaluation)
    return {
        "run_id": run_id,
        "verdict": verdict(gate),
        "comparison": comparison,
        "gate": gate,
        "ingest": ingest,
        "left_out": left_out_by_kind(ingest),
        "data": read_json(sources.verdict, VERDICT_FILE),
        "training": {name: read_json(sources.training[name], TRAINING_FILE) for name in backbones},
        "trials": {name: read_json(sources.trials[name], TUNER_RESULTS_FILE) for name in backbones},
        "objective": yaml.safe_load(settings)["tuner"]["objective"],
        "test": measured.metrics,
        "worst": _worst(measured.outcomes, sources.examples),
        "record": read_json(f"{sources.winner}/Format-Serving", MODEL_RECORD_FILE),
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
    """The test photos that were most surely taken for another breed, with `image`, a small JPEG as a data URL."""
    wrong = sorted((row for row in outcomes if not row["correct"]), key=lambda row: -row["confidence"])[:_WORST]
    images = read_images(examples, "test", [row["content_hash"] for row in wrong])
    return [{**row, "image": thumbnail_data_url(images[row["content_hash"]])} for row in wrong]
