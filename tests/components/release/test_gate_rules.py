"""Rules of the gate: candidates that pass, are rejected, or count as nothing new."""

import math
import re

import numpy as np
import pytest

from components.release import gate_rules
from components.release.gate_policies import POLICIES, meets_policy
from components.release.gate_rules import Decision, Rules

# The comparison with the majority-class baseline is off; it has its own tests.
RULES = Rules(
    min_accuracy=0.5,
    min_test_photos=1,
    above_majority=False,
    policy="no_harm",
    margin=0.04,
    min_slice=20,
    max_slice_drop=0.1,
)
BREEDS = ["Birman", "Sphynx"]
TRAIN = {"Birman": 40, "Sphynx": 30}
CHAMPION = {"version": 3, "is_candidate": False, "breeds": BREEDS, "learned": [], "unreadable": None}


def rules(**changes) -> Rules:
    return Rules(**{**vars(RULES), **changes})


def decide(rules, candidate, champion, breeds, champion_info, train=TRAIN) -> Decision:
    return gate_rules.decide(rules, candidate, champion, breeds, champion_info, train)


def outcomes(predictions: dict[str, str]) -> list[dict]:
    """Outcomes for each breed from a string with one character per photo: "+" is a correct prediction."""
    return [
        {
            "content_hash": f"{breed}-{number}",
            "breed": breed,
            "correct": letter == "+",
            "probability": 0.8 if letter == "+" else 0.1,
        }
        for breed, letters in predictions.items()
        for number, letter in enumerate(letters)
    ]


def decide_from_counts(both: int, won: int, lost: int, neither: int = 0, **changes):
    """Decision from the counts of photos of one breed, which are too few for a slice unless `min_slice` is given."""
    candidate = outcomes({"Birman": "+" * both + "+" * won + "-" * lost + "-" * neither})
    champion = outcomes({"Birman": "+" * both + "-" * won + "+" * lost + "-" * neither})
    return decide(rules(**{"min_slice": 10_000, **changes}), candidate, champion, BREEDS, CHAMPION)


def test_first_model_passes_if_it_is_accurate_enough():
    decision = decide(RULES, outcomes({"Birman": "+++-"}), [], BREEDS, None)
    assert decision.outcome == "blessed"
    assert decision.comparison is None
    assert decision.slices == []
    assert "accuracy 0.750 on 4 test photos (95% CI 0.301 to 0.954; balanced" in decision.reasons[0]
    assert "no champion to compare with" in decision.reasons[1]


def test_accuracy_equal_to_min_accuracy_passes():
    assert decide(RULES, outcomes({"Birman": "+-"}), [], BREEDS, None).outcome == "blessed"


@pytest.mark.parametrize("champion", [None, {**CHAMPION, "breeds": ["Birman", "Manx"]}])
def test_accuracy_below_min_accuracy_is_rejected_with_the_settings_key(champion):
    decision = decide(RULES, outcomes({"Birman": "+--"}), [], BREEDS, champion)
    assert decision.outcome == "refused"
    assert "accuracy 0.333 on 3 test photos" in decision.reasons[0]
    assert "gate.min_accuracy=0.5" in decision.reasons[0]
    assert not any("meets" in reason for reason in decision.reasons)


def test_accuracy_below_min_accuracy_is_rejected_even_if_the_candidate_beats_the_champion():
    decision = decide_from_counts(both=10, won=20, lost=0, neither=70)
    assert decision.outcome == "refused"
    assert decision.comparison["accuracy_difference"] == pytest.approx(0.2)


def test_a_candidate_identical_to_the_champion_counts_as_nothing_new_at_any_accuracy():
    decision = decide(RULES, outcomes({"Birman": "---"}), [], BREEDS, {**CHAMPION, "is_candidate": True})
    assert decision.outcome == "nothing_new"
    assert len(decision.reasons) == 1
    assert "version 3" in decision.reasons[0]


@pytest.mark.parametrize("champion_breeds", [["Birman"], ["Birman", "Manx"], ["Birman", "Sphynx", "Manx"]])
def test_a_champion_with_other_breeds_is_not_compared(champion_breeds):
    decision = decide(
        RULES, outcomes({"Birman": "++"}), outcomes({"Birman": "--"}), BREEDS, {**CHAMPION, "breeds": champion_breeds}
    )
    assert decision.outcome == "blessed"
    assert decision.comparison is None
    assert any("the breeds differ from those of champion version 3" in reason for reason in decision.reasons)


def test_added_and_removed_breeds_are_reported():
    rows = outcomes({"Birman": "++"})
    decision = decide(RULES, rows, rows, BREEDS, {**CHAMPION, "breeds": ["Birman", "Manx", "Korat"]})
    assert "(added: Sphynx; removed: Korat, Manx): only the absolute thresholds apply" in decision.reasons[-1]


@pytest.mark.parametrize(("letters", "outcome"), [("++++", "blessed"), ("----", "refused")])
def test_with_an_unreadable_champion_the_absolute_thresholds_apply_and_a_reason_reports_it(letters, outcome):
    champion = {"version": 3, "unreadable": "/models/3: OSError: no saved_model.pb"}
    decision = decide(RULES, outcomes({"Birman": letters}), [], BREEDS, champion)
    assert decision.outcome == outcome
    assert decision.comparison is None
    assert "champion version 3 cannot be loaded (/models/3: OSError: no saved_model.pb)" in decision.reasons[-1]


@pytest.mark.parametrize(("min_test_photos", "outcome"), [(4, "blessed"), (5, "refused")])
def test_too_few_test_photos_are_rejected_even_if_all_predictions_are_correct(min_test_photos, outcome):
    decision = decide(rules(min_test_photos=min_test_photos), outcomes({"Birman": "++++"}), [], BREEDS, None)
    assert decision.outcome == outcome
    too_few = "4 test photos, fewer than gate.min_test_photos=5" in decision.reasons[0]
    assert too_few == (outcome == "refused")


def test_breeds_in_a_different_order_are_compared():
    rows = outcomes({"Birman": "++"})
    decision = decide(rules(margin=0.5), rows, rows, BREEDS, {**CHAMPION, "breeds": BREEDS[::-1]})
    assert decision.comparison["photos"] == 2


def test_photos_are_paired_by_content_and_not_by_position():
    candidate = outcomes({"Birman": "+-+-", "Sphynx": "++"})
    decision = decide(rules(margin=0.5), candidate, candidate[::-1], BREEDS, CHAMPION)
    assert (decision.comparison["only_candidate_right"], decision.comparison["only_champion_right"]) == (0, 0)
    assert decision.comparison["mcnemar_p"] == 1


@pytest.mark.parametrize(
    ("policy", "won", "lost", "outcome"),
    [
        ("no_harm", 0, 0, "blessed"),
        ("no_harm", 90, 110, "blessed"),  # exactly the margin
        ("no_harm", 90, 111, "refused"),
        ("no_harm", 5, 12, "blessed"),  # not significant
        ("no_harm", 5, 13, "refused"),  # within the margin
        ("no_harm", 30, 10, "blessed"),
        ("not_worse", 0, 0, "blessed"),
        ("not_worse", 5, 5, "blessed"),
        ("not_worse", 8, 5, "blessed"),
        ("not_worse", 5, 15, "refused"),
        ("not_worse", 60, 60, "refused"),  # equal, but too few photos to rule out a loss above the margin
        ("better", 6, 5, "blessed"),
        ("better", 5, 5, "refused"),
        ("better", 0, 0, "refused"),
        ("better", 4, 5, "refused"),
        ("significantly_better", 10, 2, "blessed"),
        ("significantly_better", 9, 2, "refused"),
        ("significantly_better", 2, 10, "refused"),
        ("significantly_better", 0, 0, "refused"),
    ],
)
def test_each_policy_passes_exactly_the_candidates_that_meet_it(policy, won, lost, outcome):
    decision = decide_from_counts(both=500 - won - lost, won=won, lost=lost, policy=policy)
    assert decision.outcome == outcome
    assert decision.comparison["policy"] == policy
    (reason,) = (reason for reason in decision.reasons if "against version 3" in reason)
    verb = "meets" if outcome == "blessed" else "fails"
    assert reason.startswith(f"{verb} gate.policy={policy} against version 3: accuracy difference ")
    assert reason.endswith(f"; {won} wins and {lost} losses on 500 photos")
    low, high = decision.comparison["accuracy_difference_ci95"]
    assert f"{(won - lost) / 500:+.3f} (95% CI {low:+.3f} to {high:+.3f}), " in reason


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("margin", [0.0, 0.04, 1.0])
def test_the_decision_is_that_of_the_function_from_which_the_power_is_calculated(policy, margin):
    counts = (0, 1, 2, 5, 9, 20, 33)
    pairs = [(wins, losses) for wins in counts for losses in counts if wins + losses <= 40]
    passes = meets_policy(policy, margin, *np.array(pairs).T, 40)
    for passed, (won, lost) in zip(passes, pairs, strict=True):
        changes = {"policy": policy, "margin": margin, "min_accuracy": 0.0}
        decision = decide_from_counts(both=40 - won - lost, won=won, lost=lost, **changes)
        assert passed == (decision.outcome == "blessed"), (won, lost)


def test_rules_with_an_unknown_policy_are_an_error():
    with pytest.raises(ValueError, match=r"gate\.policy=best: no such policy"):
        rules(policy="best")


def test_training_photos_of_the_champion_are_excluded_from_the_comparison_and_a_reason_reports_it():
    candidate, champion = outcomes({"Birman": "+" * 20 + "-" * 5}), outcomes({"Birman": "+" * 25})
    learned = [row["content_hash"] for row in candidate if not row["correct"]]
    assert decide(RULES, candidate, champion, BREEDS, CHAMPION).outcome == "refused"
    decision = decide(RULES, candidate, champion, BREEDS, {**CHAMPION, "learned": learned})
    assert decision.outcome == "blessed"
    assert decision.comparison["photos"] == 20
    fact = "champion version 3 was trained on 5 of the 25 test photos: the comparison uses the other 20"
    assert fact in decision.reasons


def test_absolute_thresholds_apply_if_the_champion_was_trained_on_nearly_all_test_photos():
    candidate, champion = outcomes({"Birman": "+" * 20 + "-" * 5}), outcomes({"Birman": "+" * 25})
    learned = [row["content_hash"] for row in candidate[3:]]
    decision = decide(rules(min_test_photos=10), candidate, champion, BREEDS, {**CHAMPION, "learned": learned})
    assert (decision.outcome, decision.comparison) == ("blessed", None)
    assert decision.reasons[-1] == decision.not_compared
    assert decision.not_compared == (
        "champion version 3 was trained on 22 of the 25 test photos, which leaves 3 photos, too few for a comparison "
        "(gate.min_test_photos=10): only the absolute thresholds apply"
    )


def test_without_test_photos_the_candidate_is_rejected_for_too_few_photos():
    decision = decide(RULES, [], [], BREEDS, CHAMPION)
    assert decision.outcome == "refused"
    assert decision.reasons[0].startswith("0 test photos, fewer than gate.min_test_photos=1")


@pytest.mark.parametrize("policy", ["no_harm", "not_worse"])
def test_a_wider_margin_allows_a_larger_loss(policy):
    worse = {"both": 470, "won": 14, "lost": 16, "policy": policy}
    assert decide_from_counts(**worse, margin=0.003).outcome == "refused"
    assert decide_from_counts(**worse, margin=0.06).outcome == "blessed"


def test_comparison_contains_the_numbers_behind_the_decision():
    comparison = decide_from_counts(both=80, won=10, lost=2, neither=8).comparison
    assert comparison["photos"] == 100
    assert (comparison["only_candidate_right"], comparison["only_champion_right"]) == (10, 2)
    assert comparison["accuracy_difference"] == pytest.approx(0.08)
    assert comparison["mcnemar_p"] == pytest.approx(0.0386, abs=5e-5)
    assert comparison["mcnemar_worse_p"] == pytest.approx(0.9968, abs=5e-5)
    low, high = comparison["accuracy_difference_ci95"]
    assert 0 < low < 0.08 < high < 0.2
    assert comparison["log_likelihood_difference"] == pytest.approx(0.08 * math.log(8))
    assert comparison["log_likelihood_worse_p"] > 0.95


def test_a_breed_with_too_large_a_drop_rejects_a_candidate_that_is_better_overall():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "+" * 14 + "-" * 6})
    champion = outcomes({"Birman": "+" * 60 + "-" * 20, "Sphynx": "+" * 20})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.comparison["accuracy_difference"] > 0.1
    assert decision.outcome == "refused"
    assert decision.reasons == [
        "breed 'Sphynx': accuracy 0.700 instead of 1.000 on 20 photos, a drop of more than gate.max_slice_drop=0.1 and "
        "significant (one-sided exact McNemar p = 0.0156, significant below 0.0250 = 0.05 / 2 breeds)"
    ]
    assert decide(rules(max_slice_drop=0.3), candidate, champion, BREEDS, CHAMPION).outcome == "blessed"


@pytest.mark.parametrize(("lost", "outcome"), [(5, "blessed"), (6, "refused")])  # p = 0.0312 and 0.0156
def test_a_drop_on_a_breed_that_may_be_due_to_chance_is_reported_and_does_not_reject(lost, outcome):
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "+" * (20 - lost) + "-" * lost})
    champion = outcomes({"Birman": "+" * 60 + "-" * 20, "Sphynx": "+" * 20})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.outcome == outcome
    assert any("may be due to chance" in reason for reason in decision.reasons) == (outcome == "blessed")
    # With one enforced breed instead of two, 0.0312 is significant.
    assert decide(rules(margin=1), candidate[70:], champion[70:], BREEDS, CHAMPION).outcome == "refused"


def test_a_drop_equal_to_max_slice_drop_passes():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "+" * 20 + "-" * 40})
    champion = outcomes({"Birman": "+" * 50 + "-" * 30, "Sphynx": "+" * 26 + "-" * 34})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.slices[1]["worse_p"] == pytest.approx(1 / 64)
    assert decision.outcome == "blessed"
    assert decide(rules(max_slice_drop=0.099), candidate, champion, BREEDS, CHAMPION).outcome == "refused"


def test_a_breed_with_few_photos_is_reported_but_not_enforced():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "-" * 19})
    champion = outcomes({"Birman": "+" * 40 + "-" * 40, "Sphynx": "+" * 19})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.outcome == "blessed"
    few = {"breed": "Sphynx", "photos": 19, "candidate": 0.0, "champion": 1.0, "worse_p": pytest.approx(0.5**19)}
    assert decision.slices == [
        {"breed": "Birman", "photos": 80, "candidate": 1.0, "champion": 0.5, "worse_p": 1.0, "enforced": True},
        {**few, "enforced": False},
    ]


def test_a_rejection_reports_all_reasons_against_the_candidate_and_none_for_it():
    candidate = outcomes({"Birman": "-" * 30, "Sphynx": "+" * 25 + "-" * 5})
    champion = outcomes({"Birman": "+" * 30, "Sphynx": "+" * 30})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert [reason.split()[0] for reason in decision.reasons] == [*("accuracy", "no", "fails", "the", "breed", "breed")]


TRAINED_ON_FIVE = {**CHAMPION, "learned": [f"Birman-{number}" for number in range(5)]}


@pytest.mark.parametrize(
    ("champion", "fact"),
    [
        (None, "no champion to compare with: no version has the label stable"),
        (
            {"version": 3, "unreadable": "/models/3: OSError"},
            "champion version 3 cannot be loaded (/models/3: OSError)",
        ),
        (
            {**CHAMPION, "breeds": ["Birman", "Manx"]},
            "the breeds differ from those of champion version 3 (added: Sphynx",
        ),
        (TRAINED_ON_FIVE, "champion version 3 was trained on 5 of the 30 test photos"),
        (
            {**CHAMPION, "learned": [f"Birman-{number}" for number in range(29)]},
            "champion version 3 was trained on 29 of the 30 test photos, which leaves 1 photo, too few",
        ),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_accuracy": 0.99},
        {"min_test_photos": 5, "policy": "better"},
        {"above_majority": True},
        {"min_test_photos": 31, "min_accuracy": 1.0, "above_majority": True, "policy": "significantly_better"},
    ],
    ids=str,
)
def test_facts_about_the_comparison_are_reported_with_every_outcome(champion, fact, changes):
    rows = outcomes({"Birman": "+" * 28 + "--"})
    decision = decide(rules(**{"min_test_photos": 5, **changes}), rows, rows, BREEDS, champion)
    assert any(reason.startswith(fact) for reason in decision.reasons), decision.reasons
    assert (decision.not_compared is None) == (decision.comparison is not None)
    assert decision.not_compared is None or decision.not_compared in decision.reasons


@pytest.mark.parametrize("breed", ["Birman", "Sphynx"])
def test_a_model_that_always_predicts_the_largest_breed_is_rejected_at_any_accuracy(breed):
    predictions = {name: ("+" if name == breed else "-") * (120 if name == breed else 9) for name in BREEDS}
    train = {name: len(letters) for name, letters in predictions.items()}
    decision = decide(rules(above_majority=True), outcomes(predictions), [], BREEDS, None, train)
    assert decision.outcome == "refused"
    assert decision.majority["breed"] == breed
    assert decision.majority["accuracy"] == pytest.approx(120 / 129)
    (reason,) = (reason for reason in decision.reasons if "above_majority" in reason)
    assert reason.startswith(
        f"not significantly better than the majority-class baseline (always '{breed}', the largest breed in train; "
        "accuracy 0.930): 0 wins and 0 losses on 129 photos, "
    )
    other = next(name for name in BREEDS if name != breed)
    assert f"no correct prediction on test for: {other} (0 of 9)" in decision.reasons
    assert decide(RULES, outcomes(predictions), [], BREEDS, None, train).outcome == "blessed"


@pytest.mark.parametrize(
    ("won", "lost", "outcome"),
    # One-sided exact p-values: 0.0313, 0.0625, 0.0352, 0.0547, 0.5, 0.0193, 1.
    [
        (5, 0, "blessed"),
        (4, 0, "refused"),
        (7, 1, "blessed"),
        (8, 2, "refused"),
        (20, 19, "refused"),
        (11, 2, "blessed"),
        (0, 9, "refused"),
    ],
)
def test_passing_the_majority_rule_requires_a_significant_sign_test(won, lost, outcome):
    rows = outcomes({"Birman": "+" * (60 - lost) + "-" * lost, "Sphynx": "+" * won + "-" * (40 - won)})
    decision = decide(rules(above_majority=True), rows, [], BREEDS, None)
    assert decision.outcome == outcome
    assert decision.majority["sign_test_p"] < 0.05 or outcome == "refused"
    counts = rf"{won} wins? and {lost} loss(es)? on 100 photos"
    assert any(re.search(counts, reason) for reason in decision.reasons)


def test_majority_breed_is_the_largest_in_train_and_ties_are_broken_by_test():
    rows = outcomes({"Birman": "+" * 10, "Sphynx": "+" * 20})
    assert decide(RULES, rows, [], BREEDS, None, {"Birman": 9, "Sphynx": 8}).majority["breed"] == "Birman"
    assert decide(RULES, rows, [], BREEDS, None, {"Birman": 9, "Sphynx": 9}).majority["breed"] == "Sphynx"
    assert decide(RULES, outcomes({"Sphynx": "+"}), [], BREEDS, None, {"Birman": 9, "Sphynx": 9, "Manx": 9})


def test_with_too_few_photos_of_other_breeds_the_reason_states_how_many_are_needed():
    rows = outcomes({"Birman": "+" * 18, "Sphynx": "++"})  # all correct
    (reason, _) = decide(rules(above_majority=True), rows, [], BREEDS, None).reasons
    assert reason.startswith("cannot be significantly better than the majority-class baseline (always 'Birman'")
    assert reason.endswith(
        "Only 2 of the test photos show other breeds; at least 5 are needed: add photos of other breeds or increase "
        "split.test"
    )


def test_balanced_accuracy_weights_all_breeds_equally():
    summary = gate_rules.breed_summary(
        outcomes({"Birman": "+" * 90 + "-" * 10, "Sphynx": "+" * 3 + "-" * 7, "Manx": "--"})
    )
    assert summary == {"balanced_accuracy": pytest.approx((0.9 + 0.3 + 0) / 3), "never_recognised": {"Manx": 2}}


@pytest.mark.parametrize(
    ("photos", "changes", "warned"),
    [
        # Lower bounds without discordant photos: -0.2775 for 10 photos, -0.0401 for 92, -0.0397 for 93.
        (10, {}, True),
        (92, {}, True),
        (93, {}, False),
        (10, {"margin": 0.27}, True),
        (10, {"margin": 0.28}, False),
        (10_000, {"margin": 0.0}, True),
        (10, {"policy": "better", "won": 1}, False),
    ],
)
def test_a_loss_that_no_harm_cannot_rule_out_is_reported(photos, changes, warned):
    decision = decide_from_counts(**{"both": photos, "won": 0, "lost": 0, **changes})
    assert decision.outcome == "blessed"
    margin = changes.get("margin", 0.04)
    message = f"{photos} photos cannot rule out a loss larger than gate.margin={margin:g}: the 95% CI begins at -0."
    assert any(reason.startswith(message) for reason in decision.reasons) == warned


def test_the_warning_about_a_met_policy_is_not_reported_for_a_rejected_candidate():
    reasons = decide_from_counts(both=10, won=0, lost=0, min_accuracy=1.0, neither=1).reasons
    assert not any("cannot rule out" in reason for reason in reasons)


def decide_from_probabilities(candidate: float, champion: float, policy: str = "no_harm", **changes) -> Decision:
    """Decision for two models that are right on the same 60 of 80 photos with different probabilities."""

    def rows(probability: float) -> list[dict]:
        return [
            {**row, "probability": probability if row["correct"] else 1 - probability - number / 1000}
            for number, row in enumerate(outcomes({"Birman": "+" * 60 + "-" * 20}))
        ]

    return decide(rules(policy=policy, min_slice=10_000, **changes), rows(candidate), rows(champion), BREEDS, CHAMPION)


@pytest.mark.parametrize(("changes", "outcome"), [({}, "blessed"), ({"min_accuracy": 0.9}, "refused")])
def test_worse_probabilities_of_an_equally_accurate_candidate_are_reported_and_do_not_reject_it(changes, outcome):
    overconfident = decide_from_probabilities(0.91, 0.75, **changes)
    assert overconfident.outcome == outcome
    assert overconfident.comparison["accuracy_difference"] == 0
    assert overconfident.comparison["log_likelihood_worse_p"] < 0.05
    (fact,) = (reason for reason in overconfident.reasons if "probabilities" in reason)
    difference = overconfident.comparison["log_likelihood_difference"]
    assert fact.startswith(
        "the probabilities of the true breeds are significantly worse: mean difference in log-likelihood "
        f"{difference:+.3f} (one-sided paired t-test, p = "
    )
    assert difference < 0


def test_better_probabilities_are_not_reported():
    decision = decide_from_probabilities(0.75, 0.91)
    assert decision.comparison["log_likelihood_difference"] > 0
    assert not any("probabilities" in reason for reason in decision.reasons)


@pytest.mark.parametrize(("won", "lost", "warned"), [(1, 0, True), (5, 0, True), (6, 0, False), (20, 19, True)])
def test_an_improvement_that_is_not_significant_is_reported(won, lost, warned):
    decision = decide_from_counts(both=100, won=won, lost=lost, policy="better")
    assert decision.outcome == "blessed"
    assert any("improvement is not statistically significant" in reason for reason in decision.reasons) == warned
