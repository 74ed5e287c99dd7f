"""The statistics by which models are compared."""

import math


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927); (0, 1) when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value that A and B are right equally often (exact McNemar: a sign test on discordant photos).

    Args:
        only_a: photos that A alone has right.
        only_b: photos that B alone has right.
    """
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1)) / 2**discordant
    return min(1.0, 2 * tail)


def paired_lower_bound(differences: list[int], resamples: int = 10_000, seed: int = 0) -> float:
    """Lower end of the 95 % percentile-bootstrap interval of the mean of paired differences.

    Args:
        differences: for each photo, 1 if the candidate alone has it right, -1 if the champion alone, else 0.
        resamples: bootstrap samples.
        seed: the same differences give the same bound.
    """
    import numpy as np  # the readers of the other two do without

    if not differences:
        return -1.0
    values = np.asarray(differences)
    shares = [np.mean(values == outcome) for outcome in (1, -1, 0)]
    counts = np.random.default_rng(seed).multinomial(len(values), shares, size=resamples)
    return float(np.quantile((counts[:, 0] - counts[:, 1]) / len(values), 0.025))
