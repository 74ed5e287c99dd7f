"""The statistics against values worked out elsewhere."""

import math

import pytest

from components.release.statistics import (
    mcnemar_exact,
    paired_lower_bound,
    paired_score_bound,
    photos_to_exclude,
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
def test_mcnemar_gives_the_exact_two_sided_p_value_whichever_model_is_named_first(only_a, only_b, p_value):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p_value, abs=5e-5)
    assert mcnemar_exact(only_b, only_a) == mcnemar_exact(only_a, only_b)


def test_mcnemar_takes_thousands_of_photos():
    # With z = 100 / sqrt(4000) the normal approximation says 0.1138; its continuity correction 0.1175.
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
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_narrows_with_more_trials():
    low, high = wilson_interval(30, 100)
    assert wilson_interval(70, 100) == pytest.approx((1 - high, 1 - low))
    narrow_low, narrow_high = wilson_interval(300, 1000)
    assert low < narrow_low < 0.3 < narrow_high < high


def test_the_paired_bound_is_the_same_for_the_same_differences_in_any_order():
    differences = [1] * 12 + [-1] * 7 + [0] * 81
    bound = paired_lower_bound(differences)
    assert paired_lower_bound(differences) == paired_lower_bound(differences[::-1]) == bound
    assert paired_lower_bound(differences, seed=1) == pytest.approx(bound, abs=0.01)


@pytest.mark.parametrize(("won", "lost", "same"), [(300, 200, 4500), (700, 700, 3600), (0, 500, 4500), (90, 30, 4880)])
def test_the_paired_bound_lies_where_the_normal_approximation_has_it(won, lost, same):
    photos = won + lost + same
    mean = (won - lost) / photos
    deviation = math.sqrt((won + lost) / photos - mean**2)
    wanted = mean - 1.96 * deviation / math.sqrt(photos)
    assert paired_lower_bound([1] * won + [-1] * lost + [0] * same) == pytest.approx(wanted, abs=0.1 * (mean - wanted))


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"), [(5, 0, 0.03125), (7, 1, 9 / 256), (0, 0, 1), (0, 3, 1), (2, 2, 11 / 16)]
)
def test_the_sign_test_is_one_sided(wins, losses, p_value):
    assert sign_test(wins, losses) == pytest.approx(p_value)


@pytest.mark.parametrize(
    ("wins", "losses", "photos", "bound"),
    # Of Wilson's intervals: 0 of 10 ends at 0.2775, 5 of 10 are 0.2366 to 0.7634, 1 of 1 begins at 0.2065.
    [(0, 0, 10, -0.2775), (0, 10, 10, -1.0), (5, 0, 10, 0.5 - math.hypot(0.2634, 0.2775)), (1, 0, 1, 1 - 1.1222)],
)
def test_the_score_bound_is_wide_where_photos_are_few(wins, losses, photos, bound):
    assert paired_score_bound(wins, losses, photos) == pytest.approx(bound, abs=2e-4)


def test_the_score_bound_agrees_with_the_bootstrap_where_photos_are_many():
    differences = [1] * 90 + [-1] * 60 + [0] * 4850
    assert paired_score_bound(90, 60, 5000) == pytest.approx(paired_lower_bound(differences), abs=1e-3)


@pytest.mark.parametrize("loss", [0.01, 0.02, 0.1, 0.5, 0.9])
def test_the_least_photos_that_exclude_a_loss_do_and_one_fewer_do_not(loss):
    photos = photos_to_exclude(loss)
    assert wilson_interval(0, photos)[1] <= loss < wilson_interval(0, photos - 1)[1]
    assert photos_to_exclude(0) == math.inf


@pytest.mark.parametrize(("differences", "bound"), [([0] * 50, 0), ([1] * 50, 1), ([-1] * 50, -1), ([], -1)])
def test_the_paired_bound_of_photos_that_all_agree_is_their_difference_and_without_photos_the_worst(differences, bound):
    assert paired_lower_bound(differences) == bound
