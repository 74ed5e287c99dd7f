"""When a candidate may replace the champion, case by case."""

import pytest

from components.release import gate_rules
from components.release.gate_rules import Decision, Rules

# Without the comparison with the largest breed, which has tests of its own.
RULES = Rules(
    min_accuracy=0.5,
    min_test_photos=1,
    above_majority=False,
    policy="not_worse",
    margin=0.02,
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
    assert "accuracy 0.750 on 4 test photos (95 % interval 0.301 to 0.954; balanced" in decision.reasons[0]
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
    said = "version 3 in service learned from 5 of the 25 test photos: the comparison is on the 20 that remain"
    assert said in decision.reasons


def test_where_the_champion_knows_nearly_all_test_photos_the_absolute_thresholds_decide():
    candidate, champion = outcomes({"Birman": "+" * 20 + "-" * 5}), outcomes({"Birman": "+" * 25})
    learned = [row["content_hash"] for row in candidate[3:]]
    decision = decide(rules(min_test_photos=10), candidate, champion, BREEDS, {**CHAMPION, "learned": learned})
    assert (decision.outcome, decision.comparison) == ("blessed", None)
    assert decision.reasons[-1] == decision.not_compared
    assert decision.not_compared == (
        "version 3 in service learned from 22 of the 25 test photos: 3 remain, too few for a comparison by "
        "gate.min_test_photos=10; only the absolute thresholds count"
    )


def test_that_no_photo_is_lost_of_few_is_told_with_how_many_might_be():
    decision = against(both=33, won=0, lost=0)
    assert decision.comparison["lost_share_upper95"] == pytest.approx(0.104, abs=5e-4)
    assert "0 lost of 33, at most 10.4% at 95 % confidence" in decision.reasons[-2]


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
    assert [reason.split()[0] for reason in decision.reasons] == ["accuracy", "never", "fails", "breed", "breed"]


LEARNED = {**CHAMPION, "learned": [f"Birman-{number}" for number in range(5)]}


@pytest.mark.parametrize(
    ("champion", "fact"),
    [
        (None, "no model is in service to compare with"),
        (
            {"version": 3, "unreadable": "/models/3: OSError"},
            "version 3 in service cannot be read (/models/3: OSError)",
        ),
        ({**CHAMPION, "breeds": ["Birman", "Manx"]}, "the breeds are not those of version 3 in service: new Sphynx"),
        (LEARNED, "version 3 in service learned from 5 of the 30 test photos: "),
        (
            {**CHAMPION, "learned": [f"Birman-{number}" for number in range(29)]},
            "version 3 in service learned from 29 of the 30 test photos: 1 remain, too few",
        ),
    ],
)
@pytest.mark.parametrize(
    "refusing",
    [
        {},
        {"min_accuracy": 0.99},
        {"min_test_photos": 5, "policy": "better"},
        {"above_majority": True},
        {"min_test_photos": 31, "min_accuracy": 1.0, "above_majority": True, "policy": "significantly_better"},
    ],
    ids=str,
)
def test_what_a_decision_rests_on_is_said_whether_it_admits_or_refuses(champion, fact, refusing):
    rows = outcomes({"Birman": "+" * 28 + "--"})
    enough = {"min_test_photos": 5, **refusing}
    decision = decide(rules(**enough), rows, rows, BREEDS, champion)
    assert any(reason.startswith(fact) for reason in decision.reasons), decision.reasons
    assert (decision.not_compared is None) == (decision.comparison is not None)
    assert decision.not_compared is None or decision.not_compared in decision.reasons


@pytest.mark.parametrize("breed", ["Birman", "Sphynx"])
def test_a_model_that_answers_the_largest_breed_to_everything_is_refused_however_accurate(breed):
    right = {name: ("+" if name == breed else "-") * (120 if name == breed else 9) for name in BREEDS}
    train = {name: len(letters) for name, letters in right.items()}
    decision = decide(rules(above_majority=True), outcomes(right), [], BREEDS, None, train)
    assert decision.outcome == "refused"
    assert decision.majority["breed"] == breed
    assert decision.majority["accuracy"] == pytest.approx(120 / 129)
    (reason,) = (reason for reason in decision.reasons if "above_majority" in reason)
    assert reason.startswith(
        f"not shown to be better than always answering '{breed}', the largest breed of train: that"
    )
    assert "right on 0.930 of the test photos; 0 photos won, 0 lost of 129" in reason
    other = next(name for name in BREEDS if name != breed)
    assert f"never recognised on test: {other} (0 of 9)" in decision.reasons
    assert decide(RULES, outcomes(right), [], BREEDS, None, train).outcome == "blessed"


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
def test_better_than_the_largest_breed_takes_more_than_luck(won, lost, outcome):
    rows = outcomes({"Birman": "+" * (60 - lost) + "-" * lost, "Sphynx": "+" * won + "-" * (40 - won)})
    decision = decide(rules(above_majority=True), rows, [], BREEDS, None)
    assert decision.outcome == outcome
    assert decision.majority["sign_test_p"] < 0.05 or outcome == "refused"
    assert any(f"{won} photos won, {lost} lost of 100" in reason for reason in decision.reasons)


def test_the_largest_breed_is_that_of_train_and_of_equals_that_of_test():
    rows = outcomes({"Birman": "+" * 10, "Sphynx": "+" * 20})
    assert decide(RULES, rows, [], BREEDS, None, {"Birman": 9, "Sphynx": 8}).majority["breed"] == "Birman"
    assert decide(RULES, rows, [], BREEDS, None, {"Birman": 9, "Sphynx": 9}).majority["breed"] == "Sphynx"
    assert decide(RULES, outcomes({"Sphynx": "+"}), [], BREEDS, None, {"Birman": 9, "Sphynx": 9, "Manx": 9})


def test_where_no_model_could_be_shown_to_be_better_the_reason_says_what_is_missing():
    rows = outcomes({"Birman": "+" * 18, "Sphynx": "++"})  # all right
    (reason, _) = decide(rules(above_majority=True), rows, [], BREEDS, None).reasons
    assert reason.startswith("cannot be shown to be better than always answering 'Birman'")
    assert reason.endswith(
        "Only 2 of the test photos are of other breeds, and it takes 5: add photos of them or give split.test a "
        "larger share"
    )


def test_balanced_accuracy_counts_each_breed_alike():
    found = gate_rules.by_breed(outcomes({"Birman": "+" * 90 + "-" * 10, "Sphynx": "+" * 3 + "-" * 7, "Manx": "--"}))
    assert found == {"balanced_accuracy": pytest.approx((0.9 + 0.3 + 0) / 3), "never_recognised": {"Manx": 2}}


@pytest.mark.parametrize(
    ("photos", "changes", "doubt"),
    [
        # 0 lost of 10 says no more than at most 27.8 %; 0 of 188 at most 2.003 %, 0 of 189 at most 1.992 %.
        (10, {}, "10 photos cannot exclude a loss larger than gate.margin=0.02"),
        (188, {}, "188 photos cannot exclude a loss larger than gate.margin=0.02"),
        (189, {}, None),
        (10, {"margin": 0.27}, "10 photos cannot exclude a loss larger than gate.margin=0.27"),
        (10, {"margin": 0.28}, None),
        (10_000, {"margin": 0.0}, "10000 photos cannot exclude a loss larger than gate.margin=0"),
    ],
)
def test_where_few_photos_meet_the_margin_only_because_none_differs_that_is_said(photos, changes, doubt):
    decision = against(both=photos, won=0, lost=0, **changes)
    assert decision.outcome == "blessed"
    said = [reason for reason in decision.reasons if "cannot exclude" in reason]
    assert [reason.startswith(doubt or "") for reason in said] == ([True] if doubt else [])


def test_the_doubt_says_which_loss_is_possible_and_how_many_photos_it_takes():
    reason = against(both=10, won=0, lost=0).reasons[-1]
    assert reason.endswith("a score interval (Newcombe) begins at -0.278; it takes at least 189 photos")
    assert "photos to" not in against(both=10, won=0, lost=0, margin=0.0).reasons[-1]


def test_a_doubt_about_a_rule_that_is_met_is_not_said_of_one_that_is_refused():
    reasons = against(both=10, won=0, lost=0, min_accuracy=1.0, neither=1).reasons
    assert not any("cannot exclude" in reason for reason in reasons)


@pytest.mark.parametrize(("won", "lost", "doubtful"), [(1, 0, True), (5, 0, True), (6, 0, False), (20, 19, True)])
def test_better_by_so_few_photos_that_it_may_be_luck_is_said(won, lost, doubtful):
    decision = against(both=100, won=won, lost=lost, policy="better")
    assert decision.outcome == "blessed"
    assert any("photos cannot show that it is better" in reason for reason in decision.reasons) == doubtful
