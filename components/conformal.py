"""Split conformal prediction: thresholds that hold for a given share of new photos, and how they held on test."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from components.statistical_tests import wilson_interval
from serving.names import counted

_ROUNDING_ERROR = 1e-9  # of products such as 20 * 0.95
_Z = 1.96  # two-sided 95% quantile of the standard normal distribution


def conformal_quantile(scores: Sequence[float] | np.ndarray, level: float) -> float | None:
    """Return the bound that the score of a new photo does not exceed with at least the probability `level`.

    It is the ceil((n + 1) * level)-th smallest of the n scores (Angelopoulos & Bates, arXiv:2107.07511, 2021). The
    guarantee is an average over calibration photos and new photos, and requires that these are exchangeable.

    Args:
        scores: Scores of the calibration photos.
        level: Probability, between 0 and 1.

    Returns:
        The bound; None with fewer photos than `min_calibration_photos`, for which no finite bound exists.
    """
    rank = math.ceil((len(scores) + 1) * level - _ROUNDING_ERROR)
    return float(np.sort(np.asarray(scores))[rank - 1]) if rank <= len(scores) else None


def min_calibration_photos(level: float) -> int:
    """Smallest number of calibration photos for which `conformal_quantile` returns a bound."""
    return math.ceil(level / (1 - level) - _ROUNDING_ERROR)


def explanation_metrics(explain: dict[str, Any], breeds: int, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage and size of the prediction sets, and the share of photos flagged as unfamiliar.

    Args:
        explain: `explain` of the model record; see `pipeline.modules.explanation`.
        breeds: Number of breeds of the model.
        outcomes: Outcomes of a signature `explain`, at least one.

    Returns:
        `explain`, plus:
        sets: covered (number of photos whose set contains the breed), photos, coverage, coverage_ci95, mean_size and
            mean_size_ci95; None if the model has no sets.
        flagged: unfamiliar (number of flagged photos), photos, share and share_ci95; None if the model has no flag.
    """
    sets = flagged = None
    photos = len(outcomes)
    if explain["set_threshold"] is not None:
        covered, sizes = sum(row["in_set"] for row in outcomes), [row["set_size"] for row in outcomes]
        mean = float(np.mean(sizes))
        margin = _Z * float(np.std(sizes, ddof=1)) / math.sqrt(photos) if photos > 1 else breeds
        sets = {
            "covered": covered,
            "photos": photos,
            "coverage": covered / photos,
            "coverage_ci95": list(wilson_interval(covered, photos)),
            "mean_size": mean,
            "mean_size_ci95": [max(mean - margin, 1.0), min(mean + margin, float(breeds))],
        }
    if explain["unfamiliar_threshold"] is not None:
        unfamiliar = sum(row["unfamiliar"] for row in outcomes)
        flagged = {
            "unfamiliar": unfamiliar,
            "photos": photos,
            "share": unfamiliar / photos,
            "share_ci95": list(wilson_interval(unfamiliar, photos)),
        }
    return {**explain, "sets": sets, "flagged": flagged}


def explanation_sentences(metrics: dict[str, Any] | None) -> list[str]:
    """Describe the result of `explanation_metrics` for the report and the model card.

    Args:
        metrics: The result; None for a model of an earlier release, which gives no sentences.
    """
    if metrics is None:
        return []
    level, sets, flagged = f"{100 * metrics['level']:g}%", metrics["sets"], metrics["flagged"]
    if sets is None or flagged is None:
        return [
            "No prediction sets and no flag for unfamiliar photos: "
            f"{counted(metrics['calibration_photos'], 'eval photo')}, but the level {level} needs at least "
            f"{min_calibration_photos(metrics['level'])}."
        ]
    return [
        f"Prediction sets of level {level} contained the right breed for {sets['covered']} of "
        f"{counted(sets['photos'], 'test photo')} ({_share(sets['coverage'], sets['coverage_ci95'])}), with "
        f"{sets['mean_size']:.2f} breeds on average (95% CI {sets['mean_size_ci95'][0]:.2f} to "
        f"{sets['mean_size_ci95'][1]:.2f}).",
        f"{flagged['unfamiliar']} of {counted(flagged['photos'], 'test photo')} "
        f"({_share(flagged['share'], flagged['share_ci95'])}) "
        f"{'was' if flagged['unfamiliar'] == 1 else 'were'} flagged as unlike all training photos; calibrated to "
        f"{100 - 100 * metrics['level']:g}%.",
    ]


def _share(share: float, interval: list[float]) -> str:
    return f"{share:.1%}, 95% CI {interval[0]:.1%} to {interval[1]:.1%}"
