"""Thresholds of split conformal prediction, and the metrics of prediction sets."""

import numpy as np
import pytest

from components.conformal import (
    conformal_quantile,
    explanation_metrics,
    explanation_sentences,
    min_calibration_photos,
)


@pytest.mark.parametrize(("level", "photos"), [(0.95, 19), (0.9, 9), (0.99, 99), (0.5, 1), (0.8, 4)])
def test_a_threshold_needs_enough_photos_for_its_level(level, photos):
    assert min_calibration_photos(level) == photos
    assert conformal_quantile(range(photos - 1), level) is None
    assert conformal_quantile(range(photos), level) == photos - 1


def test_the_threshold_has_the_finite_sample_correction():
    scores = np.random.default_rng(0).permutation(100)
    assert conformal_quantile(scores, 0.95) == 95  # the 96th of 100 scores: ceil(101 * 0.95)


@pytest.mark.parametrize(("level", "photos"), [(0.95, 19), (0.95, 40), (0.8, 30)])
def test_new_scores_are_below_the_threshold_at_least_at_the_level(level, photos):
    random = np.random.default_rng(0)
    bounds = [conformal_quantile(random.uniform(size=photos), level) for _ in range(4000)]
    # The expected share of new uniform scores below a bound is the bound itself, between level and level + 1 / (n + 1).
    assert level - 0.003 < np.mean(bounds) < level + 1 / (photos + 1) + 0.003


def test_metrics_count_covered_photos_sizes_and_flags():
    explain = {"level": 0.9, "calibration_photos": 30, "set_threshold": 0.2, "unfamiliar_threshold": 7.0}
    rows = [
        {"in_set": True, "set_size": 1, "unfamiliar": False},
        {"in_set": True, "set_size": 3, "unfamiliar": False},
        {"in_set": False, "set_size": 2, "unfamiliar": True},
        {"in_set": True, "set_size": 2, "unfamiliar": False},
    ]
    metrics = explanation_metrics(explain, 5, rows)
    assert metrics["level"] == 0.9
    sets, flagged = metrics["sets"], metrics["flagged"]
    assert (sets["covered"], sets["photos"], sets["coverage"], sets["mean_size"]) == (3, 4, 0.75, 2.0)
    low, high = sets["mean_size_ci95"]
    assert (low, high) == pytest.approx((2 - 1.96 * (2 / 3) ** 0.5 / 2, 2 + 1.96 * (2 / 3) ** 0.5 / 2))
    assert (flagged["unfamiliar"], flagged["share"]) == (1, 0.25)
    assert flagged["share_ci95"][0] < 0.25 < flagged["share_ci95"][1]
    covered, unfamiliar = explanation_sentences(metrics)
    assert covered.startswith(
        "Prediction sets of level 90% contained the right breed for 3 of 4 test photos (75.0%, 95% "
    )
    assert covered.endswith(" with 2.00 breeds on average (95% CI 1.20 to 2.80).")
    assert unfamiliar.startswith("1 of 4 test photos (25.0%, 95% CI ")
    assert unfamiliar.endswith(") was flagged as unlike all training photos; calibrated to 10%.")


def test_a_model_without_thresholds_has_no_metrics_of_them():
    explain = {"level": 0.95, "calibration_photos": 5, "set_threshold": None, "unfamiliar_threshold": None}
    metrics = explanation_metrics(explain, 5, [{"correct": True}])
    assert metrics == {**explain, "sets": None, "flagged": None}
    assert explanation_sentences(metrics) == [
        "No prediction sets and no flag for unfamiliar photos: 5 eval photos, but the level 95% needs at least 19."
    ]
    assert explanation_sentences(None) == []  # models of earlier releases
