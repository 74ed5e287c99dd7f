"""Policies of the gate: how the candidate must compare with the champion on photos that both classified."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from components.statistical_tests import (
    SIGNIFICANCE,
    Z_95,
    log_likelihood_test,
    mcnemar_exact,
    p_text,
    paired_difference_interval,
    paired_score,
    sign_test,
)

POLICIES = ("no_harm", "not_worse", "better", "significantly_better")


def check_policy(policy: str) -> None:
    """Raise a ValueError that names the policies if there is no such policy."""
    if policy not in POLICIES:
        raise ValueError(f"gate.policy={policy}: no such policy; available: {', '.join(POLICIES)}")


def paired_comparison(candidate: list[dict[str, Any]], champion: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare two models on the same photos, of which only those that exactly one classifies correctly matter.

    Args:
        candidate: The candidate's outcomes from the Evaluator, at least one.
        champion: The champion's outcomes on the same photos, in the same order.
    """
    pairs = list(zip(candidate, champion, strict=True))
    wins = sum(row["correct"] and not other["correct"] for row, other in pairs)
    losses = sum(other["correct"] and not row["correct"] for row, other in pairs)
    photos = len(pairs)
    log_likelihood_difference, log_likelihood_worse_p = log_likelihood_test(
        [row["probability"] for row in candidate], [row["probability"] for row in champion]
    )
    return {
        "photos": photos,
        "champion_accuracy": sum(row["correct"] for row in champion) / photos,
        "only_candidate_right": wins,
        "only_champion_right": losses,
        "accuracy_difference": (wins - losses) / photos,
        "accuracy_difference_ci95": list(paired_difference_interval(wins, losses, photos)),
        "mcnemar_p": float(mcnemar_exact(wins, losses)),
        "mcnemar_worse_p": float(sign_test(losses, wins)),
        "log_likelihood_difference": log_likelihood_difference,
        "log_likelihood_worse_p": log_likelihood_worse_p,
    }


def meets_policy(policy: str, margin: float, wins: ArrayLike, losses: ArrayLike, photos: ArrayLike) -> np.ndarray:
    """Whether a candidate passes, from the photos that only one of the two models classifies correctly.

    Args:
        policy: One of POLICIES.
        margin: Loss of accuracy that no_harm and not_worse tolerate, from 0 to 1.
        wins: Number of photos that only the candidate classifies correctly.
        losses: Number of photos that only the champion classifies correctly.
        photos: Number of compared photos, at least 1.

    Raises:
        ValueError: If there is no such policy.
    """
    check_policy(policy)
    wins, losses, photos = np.asarray(wins), np.asarray(losses), np.asarray(photos)
    if policy == "no_harm":
        return ((losses - wins) / photos <= margin) & (sign_test(losses, wins) >= SIGNIFICANCE)
    if policy == "not_worse":
        # The 95% score interval begins at -margin or above; no interval begins below -1.
        return (paired_score(wins, losses, photos, -margin) >= Z_95) if margin < 1 else losses <= photos
    if policy == "better":
        return wins > losses
    return (wins > losses) & (mcnemar_exact(wins, losses) < SIGNIFICANCE)


def requirement(policy: str, margin: float, comparison: dict[str, Any]) -> str:
    """What the policy requires of a comparison, with the numbers that it depends on besides the difference.

    Args:
        policy: One of POLICIES.
        margin: Loss of accuracy that no_harm and not_worse tolerate.
        comparison: Result of `paired_comparison`.
    """
    worse_p, p_value = comparison["mcnemar_worse_p"], comparison["mcnemar_p"]
    return {
        "no_harm": f"required at least {-margin:+.3f} and not significantly worse (one-sided exact McNemar "
        f"{p_text(worse_p)}, required at least {SIGNIFICANCE:g})",
        "not_worse": f"the interval must begin at {-margin:+.3f} or above",
        "better": "required above 0",
        "significantly_better": f"exact McNemar {p_text(p_value)}, required below {SIGNIFICANCE:g}",
    }[policy]
