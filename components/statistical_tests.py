"""Statistics for comparing two classifiers on the same photos."""

import math

import numpy as np
from scipy.stats import binomtest, norm

# Level below which the gate calls a difference significant.
SIGNIFICANCE = 0.05
_Z = float(norm.ppf(0.975))  # two-sided 95% quantile of the standard normal distribution


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value of the exact McNemar test; null hypothesis: models A and B have the same accuracy.

    Args:
        only_a: Number of photos that only A classifies correctly.
        only_b: Number of photos that only B classifies correctly.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(max(only_a, only_b), only_a + only_b, 0.5).pvalue)


def sign_test(wins: int, losses: int) -> float:
    """One-sided p-value of the exact sign test, 1 without data; null hypothesis: wins are no likelier than losses."""
    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def newcombe_lower_bound(wins: int, losses: int, photos: int) -> float:
    """Lower bound of the 95% score interval for a difference of paired proportions (Newcombe, 1998).

    Unlike a bootstrap interval, it stays wide when few photos were compared, even if the models agree on all of them.

    Args:
        wins: Number of photos that only the candidate classifies correctly.
        losses: Number of photos that only the champion classifies correctly.
        photos: Number of compared photos, at least 1.
    """
    win_rate, loss_rate = wins / photos, losses / photos
    win_lower, loss_upper = wilson_interval(wins, photos)[0], wilson_interval(losses, photos)[1]
    return win_rate - loss_rate - math.hypot(win_rate - win_lower, loss_upper - loss_rate)


def min_photos_to_exclude(loss_rate: float) -> float:
    """Smallest sample without losses whose 95% Wilson interval of the loss rate ends at or below `loss_rate`.

    Args:
        loss_rate: Share of photos, from 0 to 1. No number of photos excludes 0: the result is infinity.
    """
    return math.ceil(_Z**2 * (1 - loss_rate) / loss_rate) if loss_rate else math.inf


def bootstrap_lower_bound(differences: list[int], resamples: int = 10_000, seed: int = 0) -> float:
    """Lower bound of the 95% percentile bootstrap interval for the mean of paired differences; -1 without photos.

    Args:
        differences: For each photo, 1 if only the candidate is correct, -1 if only the champion is correct, else 0.
        resamples: Number of bootstrap samples.
        seed: Seed for resampling.
    """
    if not differences:
        return -1.0
    values = np.asarray(differences)
    shares = [np.mean(values == outcome) for outcome in (1, -1, 0)]
    counts = np.random.default_rng(seed).multinomial(len(values), shares, size=resamples)
    return float(np.quantile((counts[:, 0] - counts[:, 1]) / len(values), 0.025))
