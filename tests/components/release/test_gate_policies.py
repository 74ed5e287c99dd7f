"""The function behind all policies agrees with the settings and with the interval that the gate reports."""

import typing

import pytest

from components.release.gate_policies import POLICIES, meets_policy
from components.statistical_tests import paired_difference_interval
from pipeline.settings import GateSettings

COUNTS = [(wins, losses) for wins in (0, 1, 2, 5, 9, 20, 33) for losses in (0, 1, 2, 5, 9, 20, 33)]


def test_settings_and_gate_have_the_same_policies():
    assert typing.get_args(GateSettings.model_fields["policy"].annotation) == POLICIES


@pytest.mark.parametrize("photos", [33, 150])
@pytest.mark.parametrize("margin", [0.0, 0.02, 0.04, 0.3, 1.0])
def test_not_worse_passes_if_the_interval_begins_at_the_margin_or_above(photos, margin):
    for wins, losses in COUNTS:
        if wins + losses <= photos:
            low, _ = paired_difference_interval(wins, losses, photos)
            assert meets_policy("not_worse", margin, wins, losses, photos) == (low >= -margin - 1e-12), (wins, losses)


def test_an_unknown_policy_is_an_error_that_names_the_policies():
    with pytest.raises(ValueError, match=r"gate\.policy=best: no such policy; available: no_harm, not_worse"):
        meets_policy("best", 0.04, 1, 1, 10)
