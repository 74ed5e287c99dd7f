"""What an Evaluator leaves for others to judge by."""

from typing import Any, NamedTuple

from components.errors import DamagedFileError
from components.file_names import METRICS_FILE, OUTCOMES_FILE
from components.json_files import read_json, read_json_lines


class EvaluationResult(NamedTuple):
    """One model on one split.

    Attributes:
        metrics: overall and for each breed, with intervals; None where there was no model.
        outcomes: a row for each photo, by path: content_hash, breed, predicted, correct, confidence, probability of its
            breed; empty where there was no model.
    """

    metrics: dict[str, Any] | None
    outcomes: list[dict[str, Any]]


def read_evaluation_result(uri: str) -> EvaluationResult:
    """What the Evaluator wrote to `uri`.

    Raises:
        DamagedFileError: the two documents are not of the same photos.
    """
    metrics = read_json(uri, METRICS_FILE)
    if metrics is None:
        return EvaluationResult(None, [])
    outcomes = read_outcomes(uri)
    photos = metrics["overall"]["photos"]
    if len(outcomes) != photos:
        raise DamagedFileError(
            f"{uri}: damaged: {METRICS_FILE} is of {photos} photos, {OUTCOMES_FILE} of {len(outcomes)}"
        )
    return EvaluationResult(metrics, outcomes)


def read_outcomes(uri: str) -> list[dict[str, Any]]:
    """The outcome of each photo, by path."""
    return sorted(read_json_lines(uri, OUTCOMES_FILE), key=lambda row: row["path"])
