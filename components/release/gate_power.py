"""Power of the gate: how often its policies reject an equally accurate candidate and pass a less accurate one.

The probabilities are exact for the paired comparison with the champion: each photo is independently a win, a loss or
neither. The other rules of the gate, which can only reject more candidates, are not included.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binom

from components.release.gate_policies import POLICIES, meets_policy
from serving.names import counted

# The less accurate candidate: this much below the champion.
LOSS = 0.03
# Sufficient power: rejects at most this share of equally accurate candidates, and at least that of less accurate ones.
MAX_FALSE_REJECTIONS = 0.1
MIN_POWER = 0.8
# Assumption without a comparison: correlation between the correct predictions of candidate and champion.
ASSUMED_CORRELATION = 0.55
# Numbers of photos that `photos_needed` tries: all with two significant digits.
MAX_PHOTOS = 20_000
_PHOTO_NUMBERS = [
    digits * 10**power for power in range(4) for digits in range(10, 100) if digits * 10**power <= MAX_PHOTOS
]
# Numbers of discordant photos further from their mean than this many standard deviations are ignored.
_DEVIATIONS = 6


def disagreement(accuracy: float, correlation: float) -> float:
    """Share of photos that exactly one of two models classifies correctly.

    Args:
        accuracy: Accuracy of both models.
        correlation: Correlation of their correct predictions.
    """
    return 2 * accuracy * (1 - accuracy) * (1 - correlation)


def rejection_probability(policy: str, margin: float, photos: int, discordant: float, loss: float) -> float:
    """Probability that the policy rejects a candidate, exact up to 1e-8.

    Args:
        policy: One of POLICIES.
        margin: Margin of the policy.
        photos: Number of compared photos.
        discordant: Probability that exactly one of the models classifies a photo correctly; at least `loss` is used.
        loss: Accuracy of the champion minus that of the candidate, at least 0.
    """
    discordant = max(discordant, loss)
    spread = _DEVIATIONS * np.sqrt(photos * discordant * (1 - discordant)) + _DEVIATIONS
    numbers = np.arange(max(0, int(photos * discordant - spread)), min(photos, int(photos * discordant + spread)) + 1)
    required = _required_wins(policy, margin, numbers, photos)
    win_rate = (discordant - loss) / (2 * discordant) if discordant else 0.0
    return float(np.sum(binom.pmf(numbers, photos, discordant) * binom.cdf(required - 1, numbers, win_rate)))


def _required_wins(policy: str, margin: float, discordant: np.ndarray, photos: int) -> np.ndarray:
    """Fewest wins that meet the policy for each number of discordant photos; one more than that number if none do.

    A policy that a number of wins meets is also met with more wins among as many discordant photos, so a binary search
    finds the fewest.
    """
    low, high = np.zeros_like(discordant), discordant + 1
    while np.any(searching := low < high):
        wins = np.minimum((low + high) // 2, discordant)
        passes = meets_policy(policy, margin, wins, discordant - wins, photos)
        low, high = np.where(searching & ~passes, wins + 1, low), np.where(searching & passes, wins, high)
    return low


def photos_needed(policy: str, margin: float, discordant: float) -> int | None:
    """Smallest number of photos, with two significant digits, that gives the policy sufficient power.

    Args:
        policy: One of POLICIES.
        margin: Margin of the policy.
        discordant: Probability that exactly one of the models classifies a photo correctly.

    Returns:
        The number of photos; None if no number up to MAX_PHOTOS does.
    """

    def rejects_few_equal(photos: int) -> bool:
        return rejection_probability(policy, margin, photos, discordant, 0) <= MAX_FALSE_REJECTIONS

    def rejects_most_worse(photos: int) -> bool:
        return rejection_probability(policy, margin, photos, discordant, LOSS) >= MIN_POWER

    numbers = _from_first(rejects_few_equal, _PHOTO_NUMBERS)
    if numbers and not rejects_most_worse(numbers[0]):
        numbers = _from_first(rejects_most_worse, numbers)
    return numbers[0] if numbers else None


def _from_first(condition: Callable[[int], bool], numbers: list[int]) -> list[int]:
    """The numbers from the first one that meets the condition, which all larger ones are taken to meet as well."""
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(numbers[middle]) else (middle + 1, high)
    return numbers[low:]


def gate_power(
    policy: str, margin: float, outcomes: list[dict[str, Any]], comparison: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Power of each policy on the photos of a decision; None without test photos.

    Args:
        policy: Policy of the gate, which the summary describes.
        margin: Margin of the policies.
        outcomes: The candidate's outcomes on test.
        comparison: Numbers of the paired comparison with the champion; None if there was no comparison, in which case
            the disagreement is assumed.
    """
    if not outcomes:
        return None
    if comparison:
        photos = comparison["photos"]
        # Mean of the posterior with Jeffreys' prior: no discordant photo among few does not mean that there are none.
        different = comparison["only_candidate_right"] + comparison["only_champion_right"]
        discordant, basis = _smoothed(different, photos), f"estimated from {different} of {photos}"
    else:
        photos, correct = len(outcomes), sum(row["correct"] for row in outcomes)
        discordant = disagreement(_smoothed(correct, photos), ASSUMED_CORRELATION)
        basis = (
            "assumed without a comparison, as for two models with the accuracy of this one whose correct predictions "
            f"have a correlation of {ASSUMED_CORRELATION:g}"
        )
    rows = [_policy_power(name, margin, photos, discordant) for name in POLICIES]
    return {
        "photos": photos,
        "disagreement": discordant,
        "measured": comparison is not None,
        "basis": basis,
        "loss": LOSS,
        "max_photos": MAX_PHOTOS,
        "policies": rows,
        "summary": _summary(next(row for row in rows if row["policy"] == policy), photos, discordant, basis),
    }


def _smoothed(successes: int, photos: int) -> float:
    return (successes + 0.5) / (photos + 1)


def _policy_power(policy: str, margin: float, photos: int, discordant: float) -> dict[str, Any]:
    return {
        "policy": policy,
        "margin": margin,
        "rejects_equal": rejection_probability(policy, margin, photos, discordant, 0),
        "passes_worse": 1 - rejection_probability(policy, margin, photos, discordant, LOSS),
        "photos_needed": photos_needed(policy, margin, discordant),
    }


def _summary(row: dict[str, Any], photos: int, discordant: float, basis: str) -> str:
    needed = (
        f"{row['photos_needed']:,} photos would be needed"
        if row["photos_needed"]
        else f"no number of photos up to {MAX_PHOTOS:,} would be enough"
    )
    return (
        f"on {counted(photos, 'photo')}, gate.policy={row['policy']} with gate.margin={row['margin']:g} rejects "
        f"{row['rejects_equal']:.1%} of equally accurate candidates and passes {row['passes_worse']:.1%} of candidates "
        f"that are {100 * LOSS:g} points worse; to reject at most {MAX_FALSE_REJECTIONS:.0%} of the equal ones and at "
        f"least {MIN_POWER:.0%} of the worse ones, {needed}. Exactly one of candidate and champion is right on "
        f"{discordant:.1%} of the photos ({basis}). The other rules of the gate are not included."
    )
