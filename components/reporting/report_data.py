"""Load the documents that a run's components wrote; the report page and the summaries are rendered from them."""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from components.candidates.hyperparameters import read_trials
from components.digests import git_commit
from components.evaluation_result import read_evaluation_result
from components.file_names import (
    COMPARISON_FILE,
    GATE_FILE,
    INGEST_REPORT_FILE,
    PUSH_FILE,
    TRAINING_FILE,
    VERDICT_FILE,
)
from components.json_files import read_json
from components.photo_examples import read_images, thumbnail_data_url
from serving.model_files import MODEL_RECORD_FILE
from serving.registry import Registry

_REPORTED_PACKAGES = ("tensorflow", "keras", "tfx", "apache-beam", "pillow")
_SHOWN_ERRORS = 12
RANDOM_WEIGHTS_NOTE = (
    "These backbones have random weights: the run demonstrates the pipeline, not the achievable accuracy. For a useful "
    "classifier, use ImageNet weights (the standard profile)."
)


class ArtifactUris(NamedTuple):
    """URIs of a run's artifacts that the report reads.

    Attributes:
        ingest: Report of ImageExampleGen.
        verdict: Verdict of DataGate.
        examples: Examples of ImageExampleGen.
        comparison: Comparison of BackboneSelector.
        winner: Model chosen by BackboneSelector.
        evaluation: Evaluation of the winner on test.
        decision: Decision of ModelGate.
        pushed: Record of Pusher.
        training: Artifact model_run of each candidate's Trainer.
        trials: Tuner results of each candidate's search.
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


def load_documents(
    uris: ArtifactUris, registry: str | Path, run_id: str, settings: dict[str, Any], logdir: str | None = None
) -> dict[str, Any]:
    """Load the documents of a run that `components.reporting.report_page` renders.

    Args:
        uris: URIs of the run's artifacts.
        registry: Base path of the pushed models.
        run_id: ID of the run.
        settings: Settings of the run.
        logdir: Folder of the artifacts, for TensorBoard; None if it is not on the machine that shows the report.
    """
    gate = read_json(uris.decision, GATE_FILE)
    push = read_json(uris.pushed, PUSH_FILE)
    if gate["blessed"] and push["version"] is None:
        existing = push["already_pushed_as"]
        gate.update(outcome="nothing_new", blessed=False)
        gate["reasons"].append(f"the registry already has the same model as version {existing}")
    gate |= {"run": run_id, "pushed_version": push["version"], "serving": Registry(registry).labels()}
    comparison = read_json(uris.comparison, COMPARISON_FILE)
    candidates = [row["backbone"] for row in comparison["candidates"]]
    ingest = read_json(uris.ingest, INGEST_REPORT_FILE)
    evaluation = read_evaluation_result(uris.evaluation)
    return {
        "run_id": run_id,
        "verdict": verdict(gate),
        "comparison": comparison,
        "gate": gate,
        "ingest": ingest,
        "excluded": excluded_by_kind(ingest),
        "data_verdict": read_json(uris.verdict, VERDICT_FILE),
        "training": {name: read_json(uris.training[name], TRAINING_FILE) for name in candidates},
        "trials": {name: read_trials(uris.trials[name]) for name in candidates},
        "objective": settings["tuner"]["objective"],
        "test": evaluation.metrics,
        "confident_errors": _confident_errors(evaluation.outcomes, uris.examples),
        "model_record": read_json(f"{uris.winner}/Format-Serving", MODEL_RECORD_FILE),
        "random_weights": has_random_weights(comparison),
        "settings": settings,
        "logdir": logdir,
        "commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in _REPORTED_PACKAGES},
    }


def effective_settings(
    settings: str, data: str, weights_dir: str, registry: str, rules: dict[str, Any]
) -> dict[str, Any]:
    """Settings with the parameters of the run applied, for repeating the run on one machine.

    Args:
        settings: Settings of the pipeline, as a JSON object.
        data: Folder or archive of photos.
        weights_dir: Folder with ImageNet weights, or "".
        registry: Base path of the pushed models.
        rules: Rules of the gate.
    """
    return json.loads(settings) | {
        "data": data,
        "weights_dir": weights_dir or None,
        "workdir": os.path.dirname(os.path.dirname(registry)),
        "gate": rules,
    }


def verdict(gate: dict[str, Any]) -> str:
    """Return the outcome of the gate and of Pusher in one sentence."""
    if gate["pushed_version"] is not None:
        return f"Passed: pushed as version {gate['pushed_version']}."
    if gate["outcome"] == "nothing_new":
        return "Nothing new: nothing pushed."
    return "Rejected: nothing pushed."


def excluded_by_kind(ingest: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Excluded files, grouped by the kind of problem (with spaces instead of underscores)."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in ingest["left_out"]:
        groups.setdefault(row["kind"].replace("_", " "), []).append(row)
    return dict(sorted(groups.items()))


def has_random_weights(comparison: dict[str, Any]) -> bool:
    """Whether any backbone of the comparison has random weights."""
    return any(row["weights"] == "random" for row in comparison["candidates"])


def _confident_errors(outcomes: list[dict[str, Any]], examples: str) -> list[dict[str, Any]]:
    """Misclassified test photos, highest confidence first, each with `image`: a thumbnail as a data URL."""
    errors = sorted((row for row in outcomes if not row["correct"]), key=lambda row: -row["confidence"])
    shown = errors[:_SHOWN_ERRORS]
    images = read_images(examples, "test", [row["content_hash"] for row in shown])
    return [{**row, "image": thumbnail_data_url(images[row["content_hash"]])} for row in shown]
