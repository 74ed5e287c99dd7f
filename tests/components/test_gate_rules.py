"""When a candidate may replace the champion, case by case."""

import pytest

from components.gate_rules import Rules, decide

RULES = Rules(min_accuracy=0.5, min_test_photos=1, policy="not_worse", margin=0.02, min_slice=20, max_slice_drop=0.1)
BREEDS = ["Birman", "Sphynx"]
CHAMPION = {"version": 3, "is_candidate": False, "breeds": BREEDS, "learned": [], "unreadable": None}


def rules(**changes) -> Rules:
    return Rules(**{**vars(RULES), **changes})


def outcomes(right: dict[str, str]) -> list[dict]:
    """Breed -> a letter a photo, "+" where the model is right."""
    return [
        {"content_hash": f"{breed}-{number}", "breed": breed, "correct": letter == "+"}
        for breed, letters in right.items()
        for number, letter in enumerate(letters)
    ]


def against(both: int, won: int, lost: int, neither: int = 0, **changes):
    """The decision on photos of one breed, too few to be a slice unless `min_slice` is given."""
    candidate = outcomes({"Birman": "+" * both + "+" * won + "-" * lost + "-" * neither})
    champion = outcomes({"Birman": "+" * both + "-" * won + "+" * lost + "-" * neither})
    return decide(rules(**{"min_slice": 10_000, **changes}), candidate, champion, BREEDS, CHAMPION)


def test_the_first_model_is_blessed_when_it_is_accurate_enough():
    decision = decide(RULES, outcomes({"Birman": "+++-"}), [], BREEDS, None)
    assert decision.outcome == "blessed"
    assert decision.comparison is None
    assert decision.slices == []
    assert "accuracy 0.750 on 4 test photos (95 % interval 0.301 to 0.954)" in decision.reasons[0]
    assert "no model is in service" in decision.reasons[1]


def test_exactly_the_least_accuracy_is_enough():
    assert decide(RULES, outcomes({"Birman": "+-"}), [], BREEDS, None).outcome == "blessed"


@pytest.mark.parametrize("champion", [None, {**CHAMPION, "breeds": ["Birman", "Manx"]}])
def test_a_model_below_the_least_accuracy_is_refused_with_the_key_of_the_threshold(champion):
    decision = decide(RULES, outcomes({"Birman": "+--"}), [], BREEDS, champion)
    assert decision.outcome == "refused"
    assert "accuracy 0.333 on 3 test photos" in decision.reasons[0]
    assert "gate.min_accuracy=0.5" in decision.reasons[0]
    assert not any("reaches" in reason for reason in decision.reasons)


def test_a_model_below_the_least_accuracy_is_refused_even_when_it_beats_the_champion():
    decision = against(both=10, won=20, lost=0, neither=70)
    assert decision.outcome == "refused"
    assert decision.comparison["accuracy_difference"] == pytest.approx(0.2)


def test_the_model_that_is_in_service_already_is_nothing_new_whatever_it_scores():
    decision = decide(RULES, outcomes({"Birman": "---"}), [], BREEDS, {**CHAMPION, "is_candidate": True})
    assert decision.outcome == "nothing_new"
    assert len(decision.reasons) == 1
    assert "version 3" in decision.reasons[0]


@pytest.mark.parametrize("theirs", [["Birman"], ["Birman", "Manx"], ["Birman", "Sphynx", "Manx"]])
def test_a_champion_of_other_breeds_is_not_compared_with(theirs):
    decision = decide(
        RULES, outcomes({"Birman": "++"}), outcomes({"Birman": "--"}), BREEDS, {**CHAMPION, "breeds": theirs}
    )
    assert decision.outcome == "blessed"
    assert decision.comparison is None
    assert any("the breeds are not those of version 3" in reason for reason in decision.reasons)


def test_breeds_that_came_and_went_are_named():
    rows = outcomes({"Birman": "++"})
    decision = decide(RULES, rows, rows, BREEDS, {**CHAMPION, "breeds": ["Birman", "Manx", "Korat"]})
    assert "new Sphynx, gone Korat, Manx; only the absolute thresholds count" in decision.reasons[-1]


@pytest.mark.parametrize(("letters", "outcome"), [("++++", "blessed"), ("----", "refused")])
def test_before_a_champion_that_cannot_be_read_the_absolute_thresholds_decide_and_that_is_said(letters, outcome):
    champion = {"version": 3, "unreadable": "/models/3: OSError: no saved_model.pb"}
    decision = decide(RULES, outcomes({"Birman": letters}), [], BREEDS, champion)
    assert decision.outcome == outcome
    assert decision.comparison is None
    assert "version 3 in service cannot be read (/models/3: OSError: no saved_model.pb)" in decision.reasons[-1]


@pytest.mark.parametrize(("least", "outcome"), [(4, "blessed"), (5, "refused")])
def test_with_too_few_test_photos_nothing_is_admitted_however_right(least, outcome):
    decision = decide(rules(min_test_photos=least), outcomes({"Birman": "++++"}), [], BREEDS, None)
    assert decision.outcome == outcome
    said = "4 test photos are too few to judge by, gate.min_test_photos=5" in decision.reasons[0]
    assert said == (outcome == "refused")


def test_the_same_breeds_in_another_order_are_compared():
    rows = outcomes({"Birman": "++"})
    decision = decide(rules(margin=0.5), rows, rows, BREEDS, {**CHAMPION, "breeds": BREEDS[::-1]})
    assert decision.comparison["photos"] == 2


def test_photos_are_paired_by_their_content_and_not_by_their_place():
    candidate = outcomes({"Birman": "+-+-", "Sphynx": "++"})
    decision = decide(rules(margin=0.5), candidate, candidate[::-1], BREEDS, CHAMPION)
    assert (decision.comparison["only_candidate_right"], decision.comparison["only_champion_right"]) == (0, 0)
    assert decision.comparison["mcnemar_p"] == 1


@pytest.mark.parametrize(
    ("policy", "won", "lost", "outcome"),
    [
        ("not_worse", 0, 0, "blessed"),
        ("not_worse", 5, 5, "blessed"),
        ("not_worse", 8, 5, "blessed"),
        ("not_worse", 5, 15, "refused"),
        ("not_worse", 40, 40, "refused"),  # as good, but too few photos to exclude a loss above the margin
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
def test_each_policy_blesses_what_it_promises_and_no_more(policy, won, lost, outcome):
    decision = against(both=500 - won - lost, won=won, lost=lost, policy=policy)
    assert decision.outcome == outcome
    assert decision.comparison["policy"] == policy
    (sentence,) = (reason for reason in decision.reasons if "against version 3" in reason)
    word = "meets" if outcome == "blessed" else "fails"
    assert sentence.startswith(
        f"{word} gate.policy={policy} against version 3 ({won} photos won, {lost} lost of 500, at most "
    )


def test_photos_that_the_champion_learned_from_are_not_compared_on_and_that_is_said():
    candidate, champion = outcomes({"Birman": "+" * 20 + "-" * 5}), outcomes({"Birman": "+" * 25})
    learned = [row["content_hash"] for row in candidate if not row["correct"]]
    assert decide(RULES, candidate, champion, BREEDS, CHAMPION).outcome == "refused"
    decision = decide(RULES, candidate, champion, BREEDS, {**CHAMPION, "learned": learned})
    assert decision.outcome == "blessed"
    assert decision.comparison["photos"] == 20
    assert any(reason.startswith("5 of the test photos are ones that version 3") for reason in decision.reasons)


def test_where_the_champion_knows_nearly_all_test_photos_the_absolute_thresholds_decide():
    candidate, champion = outcomes({"Birman": "+" * 20 + "-" * 5}), outcomes({"Birman": "+" * 25})
    learned = [row["content_hash"] for row in candidate[3:]]
    decision = decide(rules(min_test_photos=10), candidate, champion, BREEDS, {**CHAMPION, "learned": learned})
    assert (decision.outcome, decision.comparison) == ("blessed", None)
    assert "the 3 others are too few to compare on: only the absolute thresholds count" in decision.reasons[-1]


def test_that_no_photo_is_lost_of_few_is_told_with_how_many_might_be():
    decision = against(both=33, won=0, lost=0)
    assert decision.comparison["lost_share_upper95"] == pytest.approx(0.104, abs=5e-4)
    assert "0 lost of 33, at most 10.4% at 95 % confidence" in decision.reasons[-1]


def test_without_a_test_photo_the_decision_is_that_they_are_too_few():
    decision = decide(RULES, [], [], BREEDS, CHAMPION)
    assert decision.outcome == "refused"
    assert decision.reasons[0].startswith("0 test photos are too few")


def test_a_wider_margin_gives_more_away():
    worse = {"both": 480, "won": 5, "lost": 15}
    assert against(**worse, margin=0.02).outcome == "refused"
    assert against(**worse, margin=0.06).outcome == "blessed"


def test_the_comparison_holds_the_numbers_that_decided():
    comparison = against(both=80, won=10, lost=2, neither=8).comparison
    assert comparison["photos"] == 100
    assert (comparison["only_candidate_right"], comparison["only_champion_right"]) == (10, 2)
    assert comparison["accuracy_difference"] == pytest.approx(0.08)
    assert comparison["mcnemar_p"] == pytest.approx(0.0386, abs=5e-5)
    assert 0 < comparison["accuracy_difference_lower95"] < 0.08


def test_a_breed_that_loses_too_much_stops_a_candidate_that_is_better_overall():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "+" * 17 + "-" * 3})
    champion = outcomes({"Birman": "+" * 60 + "-" * 20, "Sphynx": "+" * 20})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.comparison["accuracy_difference"] > 0.1
    assert decision.outcome == "refused"
    assert decision.reasons == [
        "breed 'Sphynx' falls from 1.000 to 0.850 on 20 photos, more than gate.max_slice_drop=0.1"
    ]
    assert decide(rules(max_slice_drop=0.2), candidate, champion, BREEDS, CHAMPION).outcome == "blessed"


def test_a_breed_may_lose_exactly_what_is_allowed():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "+" * 14 + "-" * 6})
    champion = outcomes({"Birman": "+" * 60 + "-" * 20, "Sphynx": "+" * 16 + "-" * 4})
    assert decide(RULES, candidate, champion, BREEDS, CHAMPION).outcome == "blessed"


def test_a_breed_with_few_photos_is_shown_and_not_enforced():
    candidate = outcomes({"Birman": "+" * 80, "Sphynx": "-" * 19})
    champion = outcomes({"Birman": "+" * 40 + "-" * 40, "Sphynx": "+" * 19})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert decision.outcome == "blessed"
    assert decision.slices == [
        {"breed": "Birman", "photos": 80, "candidate": 1.0, "champion": 0.5, "enforced": True},
        {"breed": "Sphynx", "photos": 19, "candidate": 0.0, "champion": 1.0, "enforced": False},
    ]


def test_all_reasons_against_a_candidate_are_said_and_none_for_it():
    candidate = outcomes({"Birman": "-" * 30, "Sphynx": "+" * 25 + "-" * 5})
    champion = outcomes({"Birman": "+" * 30, "Sphynx": "+" * 30})
    decision = decide(RULES, candidate, champion, BREEDS, CHAMPION)
    assert [reason.split()[0] for reason in decision.reasons] == ["accuracy", "fails", "breed", "breed"]
