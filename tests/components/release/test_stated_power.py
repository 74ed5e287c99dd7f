"""The stated power of the gate equals sums over all possible results, and the default rules keep their promise."""

import itertools
import math

import pytest

from components.release.gate_policies import POLICIES, meets_policy
from components.release.gate_power import LOSS, disagreement, gate_power, photos_needed, rejection_probability
from pipeline.settings import PROFILES, GateSettings, load

# Accuracy of two models, and the correlation of their correct predictions.
SCENARIOS = tuple(itertools.product((0.7, 0.9), (0.55, 0.8)))


def probability_by_enumeration(policy: str, margin: float, photos: int, discordant: float, loss: float) -> float:
    lose, win = (discordant + loss) / 2, (discordant - loss) / 2
    return sum(
        math.comb(photos, wins)
        * math.comb(photos - wins, losses)
        * win**wins
        * lose**losses
        * (1 - win - lose) ** (photos - wins - losses)
        for wins in range(photos + 1)
        for losses in range(photos + 1 - wins)
        if not meets_policy(policy, margin, wins, losses, photos)
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("photos", "discordant", "loss"), [(1, 0.3, 0.0), (20, 0.1, 0.0), (20, 0.1, 0.03), (12, 0.9, 0.03)]
)
@pytest.mark.parametrize("margin", [0.0, 0.06])
def test_rejection_probability_is_the_sum_over_all_results(policy, photos, discordant, loss, margin):
    expected = probability_by_enumeration(policy, margin, photos, discordant, loss)
    assert rejection_probability(policy, margin, photos, discordant, loss) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("discordant", "loss"), [(0.0, 0.0), (0.01, 0.03)])
def test_rejection_probability_with_less_disagreement_than_the_loss(discordant, loss):
    expected = probability_by_enumeration("no_harm", 0.04, 15, loss, loss)
    assert rejection_probability("no_harm", 0.04, 15, discordant, loss) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("profile", ["default", "standard", "demo"])
@pytest.mark.parametrize(("accuracy", "correlation"), SCENARIOS)
def test_the_default_rules_reject_few_equal_candidates(profile, accuracy, correlation):
    gate = GateSettings() if profile == "default" else load(profile).gate
    discordant = disagreement(accuracy, correlation)

    def rejects_equal(photos: int) -> float:
        return rejection_probability(gate.policy, gate.margin, photos, discordant, 0)

    assert rejects_equal(150) <= 0.2
    assert rejects_equal(33) <= 0.3
    assert rejects_equal(1050) <= 0.05
    smaller_margin = gate.margin - 0.01
    assert accuracy > 0.7 or rejection_probability(gate.policy, smaller_margin, 33, discordant, 0) > 0.3


def test_the_smoke_profile_passes_every_candidate():
    assert "smoke" in {path.stem for path in PROFILES.glob("*.yaml")}
    gate = load("smoke").gate
    assert meets_policy(gate.policy, gate.margin, 0, 50, 50)


@pytest.mark.parametrize(("accuracy", "correlation"), SCENARIOS)
@pytest.mark.parametrize(("policy", "margin"), [("no_harm", 0.04), ("not_worse", 0.04), ("not_worse", 0.02)])
def test_with_the_needed_photos_few_equal_and_most_worse_candidates_are_rejected(policy, margin, accuracy, correlation):
    discordant = disagreement(accuracy, correlation)
    needed = photos_needed(policy, margin, discordant)

    def sufficient(photos: int) -> bool:
        return (
            rejection_probability(policy, margin, photos, discordant, 0) <= 0.1
            and rejection_probability(policy, margin, photos, discordant, LOSS) >= 0.8
        )

    assert sufficient(needed)
    assert not sufficient(int(0.9 * needed))
    assert not sufficient(int(0.6 * needed))


@pytest.mark.parametrize(("policy", "margin"), [("better", 0.04), ("significantly_better", 0.04), ("no_harm", 0.0)])
def test_no_number_of_photos_is_sufficient_if_equal_candidates_are_often_rejected(policy, margin):
    assert photos_needed(policy, margin, 0.19) is None


OUTCOMES = [{"correct": number < 70} for number in range(99)]
COMPARISON = {"photos": 80, "only_candidate_right": 5, "only_champion_right": 6}


def test_power_uses_the_disagreement_on_the_compared_photos():
    power = gate_power("no_harm", 0.04, OUTCOMES, COMPARISON)
    assert (power["photos"], power["measured"]) == (80, True)
    assert power["disagreement"] == pytest.approx(11.5 / 81)
    rows = {row["policy"]: row for row in power["policies"]}
    assert tuple(rows) == POLICIES
    expected = rejection_probability("no_harm", 0.04, 80, 11.5 / 81, 0)
    assert rows["no_harm"]["rejects_equal"] == pytest.approx(expected)
    passes = 1 - rejection_probability("no_harm", 0.04, 80, 11.5 / 81, 0.03)
    assert rows["no_harm"]["passes_worse"] == pytest.approx(passes)
    assert power["summary"].startswith(
        f"on 80 photos, gate.policy=no_harm with gate.margin=0.04 rejects {expected:.1%} of equally accurate "
        f"candidates and passes {passes:.1%} of candidates that are 3 points worse; "
    )
    assert f"{rows['no_harm']['photos_needed']:,} photos would be needed" in power["summary"]
    assert "14.2% of the photos (estimated from 11 of 80)" in power["summary"]


def test_power_without_a_comparison_states_its_assumption():
    power = gate_power("better", 0.04, OUTCOMES, None)
    accuracy = 70.5 / 100
    assert (power["photos"], power["measured"]) == (99, False)
    assert power["disagreement"] == pytest.approx(2 * accuracy * (1 - accuracy) * 0.45)
    assert "no number of photos up to 20,000 would be enough" in power["summary"]
    assert "assumed without a comparison" in power["summary"]
    assert "correlation of 0.55" in power["summary"]


def test_models_that_agree_on_a_few_photos_are_not_assumed_to_agree_on_all():
    power = gate_power("no_harm", 0.04, OUTCOMES, {"photos": 10, "only_candidate_right": 0, "only_champion_right": 0})
    assert power["disagreement"] == pytest.approx(0.5 / 11)
    assert power["policies"][0]["rejects_equal"] > 0.1


def test_there_is_no_power_without_test_photos():
    assert gate_power("no_harm", 0.04, [], None) is None
