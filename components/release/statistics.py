"""The statistics by which models are compared."""

import math

_Z = 1.959964  # of 95 %


def wilson_interval(successes: int, trials: int, z: float = _Z) -> tuple[float, float]:
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
    return min(1.0, 2 * sign_test(max(only_a, only_b), min(only_a, only_b)))


def sign_test(wins: int, losses: int) -> float:
    """One-sided p-value that wins are no more likely than losses (exact sign test); 1 without any."""
    total = wins + losses
    return sum(math.comb(total, k) for k in range(losses + 1)) / 2**total


def paired_score_bound(wins: int, losses: int, photos: int) -> float:
    """Lower end of the 95 % score interval of the share of wins minus that of losses (Newcombe, 1998).

    It stays wide where few photos were compared, also if none of them was won or lost; a bootstrap interval does not.

    Args:
        wins: photos that the candidate alone has right.
        losses: photos that the champion alone has right.
        photos: compared, at least 1.
    """
    won, lost = wins / photos, losses / photos
    least_won, most_lost = wilson_interval(wins, photos)[0], wilson_interval(losses, photos)[1]
    return won - lost - math.hypot(won - least_won, most_lost - lost)


def photos_to_exclude(loss: float) -> float:
    """Photos of which none may be lost before the 95 % interval of the share of losses ends at `loss` or below.

    Args:
        loss: share of photos, 0 to 1; for 0 no number is enough: infinite.
    """
    return math.ceil(_Z**2 * (1 - loss) / loss) if loss else math.inf


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
