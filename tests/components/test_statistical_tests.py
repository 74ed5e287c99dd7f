"""Statistics compared with published values and closed-form results."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom

from components.statistical_tests import (
    log_likelihood_test,
    mcnemar_exact,
    paired_difference_interval,
    paired_score,
    sign_test,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (10, 2, 0.0386),
        (0, 5, 0.0625),
        (0, 6, 0.03125),
        (1, 0, 1.0),
        (0, 0, 1.0),
        (7, 7, 1.0),
        (8, 7, 1.0),
        (15, 5, 0.0414),
    ],
)
def test_mcnemar_returns_the_exact_two_sided_p_value_for_either_order_of_models(only_a, only_b, p_value):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p_value, abs=5e-5)
    assert mcnemar_exact(only_b, only_a) == mcnemar_exact(only_a, only_b)


@pytest.mark.parametrize("total", range(1, 40))
def test_exact_tests_equal_the_sums_of_binomial_coefficients(total):
    for wins in range(total + 1):
        at_least = sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total
        assert sign_test(wins, total - wins) == pytest.approx(at_least, rel=1e-12)
        more = sum(math.comb(total, k) for k in range(max(wins, total - wins), total + 1)) / 2**total
        assert mcnemar_exact(wins, total - wins) == pytest.approx(min(1, 2 * more), rel=1e-12)


def test_mcnemar_handles_thousands_of_photos():
    # With z = 100 / sqrt(4000) the normal approximation is 0.1138; with continuity correction, 0.1175.
    assert mcnemar_exact(2050, 1950) == pytest.approx(0.1175, abs=5e-4)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
        (1, 1, 0.2065, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_matches_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_narrows_with_more_trials():
    low, high = wilson_interval(30, 100)
    assert wilson_interval(70, 100) == pytest.approx((1 - high, 1 - low))
    narrow_low, narrow_high = wilson_interval(300, 1000)
    assert low < narrow_low < 0.3 < narrow_high < high


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"), [(5, 0, 0.03125), (7, 1, 9 / 256), (0, 0, 1), (0, 3, 1), (2, 2, 11 / 16)]
)
def test_sign_test_is_one_sided(wins, losses, p_value):
    assert sign_test(wins, losses) == pytest.approx(p_value)


def test_exact_tests_accept_arrays():
    wins, losses = np.array([10, 0, 7, 0]), np.array([2, 5, 7, 0])
    pairs = list(zip(wins, losses, strict=True))
    assert mcnemar_exact(wins, losses) == pytest.approx([mcnemar_exact(*pair) for pair in pairs])
    assert sign_test(wins, losses) == pytest.approx([sign_test(*pair) for pair in pairs])


@pytest.mark.parametrize(
    ("wins", "losses", "photos", "interval"),
    [
        # Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014: airway hyper-responsiveness.
        (1, 7, 21, (-0.517, -0.026)),
        # Without discordant photos: z^2 / (n + z^2) on both sides.
        (0, 0, 10, (-0.2775, 0.2775)),
        (0, 0, 150, (-0.0250, 0.0250)),
        (0, 3, 3, (-1.0, 0.1230)),
        (3, 0, 3, (-0.1230, 1.0)),
    ],
)
def test_paired_interval_matches_published_and_closed_form_values(wins, losses, photos, interval):
    assert paired_difference_interval(wins, losses, photos) == pytest.approx(interval, abs=5e-4)


def test_paired_score_matches_the_limits_of_another_implementation():
    # R package PropCIs: scoreci.mp(25, 28, 618, conf.level = 0.9) is -0.0148 to 0.0247.
    assert paired_score(28, 25, 618, -0.0148) == pytest.approx(1.645, abs=0.01)
    assert paired_score(28, 25, 618, 0.0247) == pytest.approx(-1.645, abs=0.01)


def numerical_score(wins: int, losses: int, photos: int, difference: float) -> float:
    """The score statistic, with the restricted maximum of the likelihood from a numerical search."""
    same = photos - wins - losses

    def cost(loss_rate: float) -> float:
        win_rate = loss_rate + difference
        rates = np.array([win_rate, loss_rate, 1 - win_rate - loss_rate])
        counts = np.array([wins, losses, same])
        return -np.sum(counts[counts > 0] * np.log(np.maximum(rates[counts > 0], 1e-300)))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    loss_rate = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (wins - losses - photos * difference) / math.sqrt(photos * (2 * loss_rate + difference - difference**2))


@pytest.mark.parametrize(
    ("wins", "losses", "photos"), [(1, 7, 21), (28, 25, 618), (0, 2, 33), (2, 0, 33), (40, 40, 150), (0, 0, 100)]
)
def test_paired_interval_agrees_with_a_numerical_search(wins, losses, photos):
    low, high = paired_difference_interval(wins, losses, photos)
    observed = (wins - losses) / photos
    for bound, end, z in ((low, -0.999, 1.959964), (high, 0.999, -1.959964)):
        inner = observed + math.copysign(1e-9, end)
        root = brentq(lambda x, z=z: numerical_score(wins, losses, photos, x) - z, *sorted((end, inner)), xtol=1e-9)
        assert bound == pytest.approx(root, abs=1e-5)


@pytest.mark.parametrize("photos", [33, 150])
@pytest.mark.parametrize("discordant", [0.01, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("difference", [-0.03, 0.0])
def test_paired_interval_begins_above_the_true_difference_in_few_of_all_possible_samples(
    photos, discordant, difference
):
    """Nominal share: 2.5%."""
    discordant = max(discordant, -difference)
    losses, wins = np.meshgrid(np.arange(photos + 1), np.arange(photos + 1))
    possible = wins + losses <= photos
    wins, losses = wins[possible], losses[possible]
    win_rate = (discordant + difference) / (2 * discordant)
    chance = binom.pmf(wins + losses, photos, discordant) * binom.pmf(wins, wins + losses, win_rate)
    assert chance.sum() == pytest.approx(1)
    begins_above = paired_score(wins, losses, photos, difference) > 1.96
    assert chance[begins_above].sum() < 0.05


def test_paired_interval_agrees_with_the_normal_approximation_for_many_photos():
    deviation = math.sqrt(150 / 5000 - 0.006**2) / math.sqrt(5000)
    expected = (0.006 - 1.96 * deviation, 0.006 + 1.96 * deviation)
    assert paired_difference_interval(90, 60, 5000) == pytest.approx(expected, abs=2e-4)


def test_log_likelihood_test_is_the_one_sided_paired_t_test():
    candidate, champion = [0.5, 0.2, 0.8, 0.1], [0.6, 0.4, 0.7, 0.5]
    differences = np.log(candidate) - np.log(champion)
    difference, p_value = log_likelihood_test(candidate, champion)
    assert difference == pytest.approx(differences.mean())
    t = differences.mean() / (differences.std(ddof=1) / 2)
    # Distribution function of Student's t with 3 degrees of freedom.
    x = t / math.sqrt(3)
    assert p_value == pytest.approx(0.5 + (x / (1 + x**2) + math.atan(x)) / math.pi)
    assert log_likelihood_test(champion, candidate) == pytest.approx((-difference, 1 - p_value))


def test_one_photo_with_probability_zero_does_not_decide_the_log_likelihood_test():
    champion = np.full(100, 0.7)
    candidate = np.where(np.arange(100) % 2, 0.75, 0.69)
    better, p_value = log_likelihood_test(candidate, champion)
    assert (better > 0, p_value > 0.99) == (True, True)
    candidate[0] = 0.0
    difference, p_value = log_likelihood_test(candidate, champion)
    assert difference == pytest.approx(better + math.log(0.01 / 0.69) / 100)
    assert p_value > 0.05


@pytest.mark.parametrize("rates", [[0.5], [0.9, 0.9, 0.9]])
def test_log_likelihood_test_without_variation_is_not_significant(rates):
    assert log_likelihood_test(rates, rates) == (0.0, 1.0)
    assert log_likelihood_test([0.3 for _ in rates], rates)[1] == 1.0
