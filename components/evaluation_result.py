"""Evaluation results: metrics of a model and its prediction for each photo."""

from typing import Any, NamedTuple

from components.errors import DamagedFileError
from components.file_names import METRICS_FILE, OUTCOMES_FILE
from components.json_files import read_json, read_json_lines


class EvaluationResult(NamedTuple):
    """Result of evaluating one model on one split.

    Attributes:
        metrics: Metrics overall and for each breed, with confidence intervals; None if there was no model.
        outcomes: One row for each photo, sorted by path: content_hash, breed, predicted, correct, confidence,
            probability of the true breed, and the values of the signature `explain` if it was evaluated; empty if there
            was no model.
    """

    metrics: dict[str, Any] | None
    outcomes: list[dict[str, Any]]


def read_evaluation_result(uri: str) -> EvaluationResult:
    """Read the output of Evaluator at `uri`.

    Raises:
        DamagedFileError: If the two files have different numbers of photos.
    """
    metrics = read_json(uri, METRICS_FILE)
    if metrics is None:
        return EvaluationResult(None, [])
    outcomes = read_outcomes(uri)
    photos = metrics["overall"]["photos"]
    if len(outcomes) != photos:
        raise DamagedFileError(
            f"{uri}: damaged: {METRICS_FILE} is for {photos} photos, {OUTCOMES_FILE} for {len(outcomes)}"
        )
    return EvaluationResult(metrics, outcomes)


def read_outcomes(uri: str) -> list[dict[str, Any]]:
    """Read the outcome of each photo, sorted by path."""
    return sorted(read_json_lines(uri, OUTCOMES_FILE), key=lambda row: row["path"])
