"""Statistics for comparing two classifiers on the same photos."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm, ttest_rel

# Level below which the gate calls a difference significant.
SIGNIFICANCE = 0.05
Z_95 = float(norm.ppf(0.975))  # two-sided 95% quantile of the standard normal distribution
# Lower limit of the probabilities in a log-likelihood: one photo cannot lose more than 4.6 nats.
_MIN_PROBABILITY = 0.01


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(only_a: ArrayLike, only_b: ArrayLike) -> ArrayLike:
    """Two-sided p-value of the exact McNemar test; null hypothesis: models A and B have the same accuracy.

    Args:
        only_a: Number of photos that only A classifies correctly.
        only_b: Number of photos that only B classifies correctly.
    """
    return np.minimum(1.0, 2 * sign_test(np.maximum(only_a, only_b), np.minimum(only_a, only_b)))


def sign_test(wins: ArrayLike, losses: ArrayLike) -> ArrayLike:
    """One-sided p-value of the exact sign test, 1 without data; null hypothesis: wins are no likelier than losses."""
    return binom.sf(np.subtract(wins, 1), np.add(wins, losses), 0.5)


def paired_score(wins: ArrayLike, losses: ArrayLike, photos: ArrayLike, difference: float) -> np.ndarray:
    """Score statistic for a difference of paired proportions (Tango, Statistics in Medicine 17, 1998).

    It is approximately standard normal if `difference` is the true one, and positive if more was observed. Unlike the
    difference divided by its standard error, it is valid for few photos, even if no photo is discordant.

    Args:
        wins: Number of photos that only the candidate classifies correctly.
        losses: Number of photos that only the champion classifies correctly.
        photos: Number of compared photos, at least 1.
        difference: Accuracy of the candidate minus that of the champion, above -1 and below 1.
    """
    linear = (2 * photos - wins + losses) * difference - wins - losses
    constant = -losses * difference * (1 - difference)
    # The likeliest probability of a loss, given the difference, solves a quadratic equation.
    loss_rate = (np.sqrt(linear**2 - 8 * photos * constant) - linear) / (4 * photos)
    variance = np.maximum(photos * (2 * loss_rate + difference * (1 - difference)), 0)
    # The variance is 0 only if no photo is discordant and the difference is 0, as observed.
    return np.divide(
        wins - losses - photos * difference, np.sqrt(variance), out=np.zeros(np.shape(variance)), where=variance > 0
    )


def paired_difference_interval(wins: int, losses: int, photos: int) -> tuple[float, float]:
    """95% score interval of a difference of paired proportions: all differences that `paired_score` does not reject.

    Args:
        wins: Number of photos that only the candidate classifies correctly.
        losses: Number of photos that only the champion classifies correctly.
        photos: Number of compared photos, at least 1.
    """
    return _lower_limit(wins, losses, photos), -_lower_limit(losses, wins, photos)


def _lower_limit(wins: int, losses: int, photos: int) -> float:
    if losses == photos:
        return -1.0
    return brentq(
        lambda difference: paired_score(wins, losses, photos, difference) - Z_95, -1 + 1e-12, (wins - losses) / photos
    )


def log_likelihood_test(candidate: ArrayLike, champion: ArrayLike) -> tuple[float, float]:
    """Paired t-test on the log-likelihood of each photo; null hypothesis: the candidate's is not lower on average.

    Args:
        candidate: The candidate's probability of the true breed for each photo; float [n].
        champion: The champion's probability of the true breed for the same photos; float [n].

    Returns:
        Mean difference in nats, candidate minus champion, and one-sided p-value (1 if the difference does not vary).
    """
    candidate, champion = (np.log(np.maximum(rates, _MIN_PROBABILITY)) for rates in (candidate, champion))
    differences = candidate - champion
    p_value = ttest_rel(candidate, champion, alternative="less").pvalue if np.ptp(differences) else 1.0
    return float(differences.mean()), float(p_value)


def p_text(p_value: float) -> str:
    """Format a p-value: "p = 0.0312", or "p < 0.0001"."""
    return f"p = {p_value:.4f}" if p_value >= 1e-4 else "p < 0.0001"
