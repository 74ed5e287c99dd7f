"""Statistics compared with published values and closed-form results."""

import math

import pytest

from components.release.statistical_tests import (
    bootstrap_lower_bound,
    mcnemar_exact,
    min_photos_to_exclude,
    newcombe_lower_bound,
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


def test_bootstrap_bound_does_not_depend_on_the_order_of_photos():
    differences = [1] * 12 + [-1] * 7 + [0] * 81
    bound = bootstrap_lower_bound(differences)
    assert bootstrap_lower_bound(differences) == bootstrap_lower_bound(differences[::-1]) == bound
    assert bootstrap_lower_bound(differences, seed=1) == pytest.approx(bound, abs=0.01)


@pytest.mark.parametrize(("won", "lost", "same"), [(300, 200, 4500), (700, 700, 3600), (0, 500, 4500), (90, 30, 4880)])
def test_bootstrap_bound_agrees_with_the_normal_approximation(won, lost, same):
    photos = won + lost + same
    mean = (won - lost) / photos
    deviation = math.sqrt((won + lost) / photos - mean**2)
    expected = mean - 1.96 * deviation / math.sqrt(photos)
    assert bootstrap_lower_bound([1] * won + [-1] * lost + [0] * same) == pytest.approx(
        expected, abs=0.1 * (mean - expected)
    )


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"), [(5, 0, 0.03125), (7, 1, 9 / 256), (0, 0, 1), (0, 3, 1), (2, 2, 11 / 16)]
)
def test_sign_test_is_one_sided(wins, losses, p_value):
    assert sign_test(wins, losses) == pytest.approx(p_value)


@pytest.mark.parametrize(
    ("wins", "losses", "photos", "bound"),
    # From Wilson intervals: 0 of 10 ends at 0.2775, 5 of 10 is 0.2366 to 0.7634, 1 of 1 starts at 0.2065.
    [(0, 0, 10, -0.2775), (0, 10, 10, -1.0), (5, 0, 10, 0.5 - math.hypot(0.2634, 0.2775)), (1, 0, 1, 1 - 1.1222)],
)
def test_newcombe_bound_is_wide_for_few_photos(wins, losses, photos, bound):
    assert newcombe_lower_bound(wins, losses, photos) == pytest.approx(bound, abs=2e-4)


def test_newcombe_bound_agrees_with_the_bootstrap_for_many_photos():
    differences = [1] * 90 + [-1] * 60 + [0] * 4850
    assert newcombe_lower_bound(90, 60, 5000) == pytest.approx(bootstrap_lower_bound(differences), abs=1e-3)


@pytest.mark.parametrize("loss", [0.01, 0.02, 0.1, 0.5, 0.9])
def test_min_photos_to_exclude_is_the_smallest_number_that_excludes_the_loss(loss):
    photos = min_photos_to_exclude(loss)
    assert wilson_interval(0, photos)[1] <= loss < wilson_interval(0, photos - 1)[1]
    assert min_photos_to_exclude(0) == math.inf


@pytest.mark.parametrize(("differences", "bound"), [([0] * 50, 0), ([1] * 50, 1), ([-1] * 50, -1), ([], -1)])
def test_bootstrap_bound_of_equal_differences_is_that_difference_and_minus_one_without_photos(differences, bound):
    assert bootstrap_lower_bound(differences) == bound
