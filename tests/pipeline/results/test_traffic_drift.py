"""Distances and thresholds of the comparison of captured photos with test photos, on simulated features."""

import numpy as np
import pytest

from pipeline.results import traffic_drift
from pipeline.results.traffic_drift import compare

BREEDS = [f"breed {number}" for number in range(12)]
SHARES = np.arange(1, 13) / 78


def simulated(generator: np.random.Generator, count: int, **changes) -> list[dict]:
    """Return features of photos; `changes` has functions that return other values of a feature."""
    values = {
        "predicted": generator.choice(BREEDS, count, p=SHARES),
        "confidence": generator.beta(5, 1, count),
        "width": generator.choice([1024, 768, 500], count, p=[0.6, 0.2, 0.2]),
        "height": np.full(count, 683),
        "brightness": generator.normal(0.5, 0.1, count),
        "embedding_norm": generator.normal(1, 0.1, count),
        "unfamiliarity": generator.exponential(10, count),
        "unfamiliar": generator.random(count) < 0.05,
        **{name: change(generator, count) for name, change in changes.items()},
    }
    columns = [np.broadcast_to(column, count).tolist() for column in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def reference() -> list[dict]:
    return simulated(np.random.default_rng(0), 200)


def test_false_alarms_are_rare(monkeypatch):
    monkeypatch.setattr(traffic_drift, "RESAMPLES", 100)  # for speed; the highest is the threshold
    generator = np.random.default_rng(7)
    alarms = 0
    # Some of the sets of test photos have no unfamiliar photo.
    for _ in range(25):
        checks = compare(simulated(generator, 60), simulated(generator, 50))
        alarms += any(check.is_drift for check in checks)
    assert alarms <= 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"brightness": lambda g, n: g.normal(0.4, 0.1, n)}, {"brightness"}),
        ({"predicted": lambda g, n: BREEDS[0]}, {"predicted"}),
        ({"predicted": lambda g, n: "a breed that test lacks"}, {"predicted"}),
        ({"unfamiliar": lambda g, n: g.random(n) < 0.4}, {"unfamiliar"}),
        ({"unfamiliarity": lambda g, n: 1e6}, {"unfamiliarity"}),
        # All test photos have this height: one pixel less or more is another value.
        ({"height": lambda g, n: 682}, {"height"}),
        ({"height": lambda g, n: 684}, {"height"}),
        ({"width": lambda g, n: g.integers(1000, 1024, n)}, {"width"}),
        (
            {"confidence": lambda g, n: g.beta(2, 1, n), "embedding_norm": lambda g, n: 2.0},
            {"confidence", "embedding_norm"},
        ),
    ],
)
def test_drift_is_found_in_the_changed_features(reference, monkeypatch, changes, expected):
    monkeypatch.setattr(traffic_drift, "RESAMPLES", 200)
    checks = compare(reference, simulated(np.random.default_rng(1), 100, **changes))
    assert {check.feature.name for check in checks if check.is_drift} == expected


def test_a_version_without_calibration_has_no_check_of_the_flag(reference):
    captured = simulated(np.random.default_rng(1), 100)
    without_flag = [{name: value for name, value in row.items() if name != "unfamiliar"} for row in reference]
    checks = compare(without_flag, captured)
    assert [check.feature for check in checks] == [row for row in traffic_drift.FEATURES if row.name != "unfamiliar"]
    assert compare(without_flag, captured) == checks  # the seed is fixed


def test_more_photos_detect_smaller_drift(reference):
    few, many = (simulated(np.random.default_rng(1), count) for count in (50, 400))
    for low, high in zip(compare(reference, many), compare(reference, few), strict=True):
        assert low.threshold < high.threshold or low.feature.name == "height", low.feature  # constant
