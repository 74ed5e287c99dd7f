"""Selection of the winner among the candidates."""

import itertools

import pytest

from components.candidates.backbone_selector import select

XCEPTION = {"backbone": "xception", "eval_accuracy": 0.80, "parameters": 20_861_480}
RESNET50 = {"backbone": "resnet50", "eval_accuracy": 0.85, "parameters": 23_587_712}
EFFICIENTNET = {"backbone": "efficientnetb7", "eval_accuracy": 0.85, "parameters": 64_097_687}


@pytest.mark.parametrize("rows", itertools.permutations([XCEPTION, {**RESNET50, "eval_accuracy": 0.7}, EFFICIENTNET]))
def test_most_accurate_candidate_wins_regardless_of_size_and_order(rows):
    winner, reason = select(list(rows), "most_accurate")
    assert winner == "efficientnetb7"
    assert "most accurate" in reason
    assert "0.850, ahead of xception with 0.800" in reason


@pytest.mark.parametrize("rows", itertools.permutations([XCEPTION, RESNET50, EFFICIENTNET]))
def test_smaller_of_equally_accurate_candidates_wins(rows):
    winner, reason = select(list(rows), "most_accurate")
    assert winner == "resnet50"
    assert reason == "as accurate on eval as efficientnetb7 (0.850), with fewer parameters"


def test_single_candidate_wins_with_its_own_reason():
    assert select([XCEPTION], "smaller_within_interval") == ("xception", "the only candidate")


@pytest.mark.parametrize(
    ("low", "winner"), [(0.86, "efficientnetb7"), (0.85, "resnet50"), (0.801, "resnet50"), (0.80, "xception")]
)
def test_smallest_candidate_within_the_interval_wins(low, winner):
    best = {**EFFICIENTNET, "eval_accuracy": 0.90, "eval_accuracy_ci95": [low, 0.95]}
    for rows in itertools.permutations([XCEPTION, RESNET50, best]):
        chosen, reason = select(list(rows), "smaller_within_interval")
        assert chosen == winner
        assert "efficientnetb7" in reason or "most accurate" in reason


def test_reason_contains_interval_size_and_both_accuracies():
    best = {**EFFICIENTNET, "eval_accuracy": 0.90, "eval_accuracy_ci95": [0.8, 0.95]}
    _, reason = select([best, XCEPTION, RESNET50], "smaller_within_interval")
    assert reason == (
        "smallest network, with 20.9 million parameters, of the 3 whose accuracy on eval is within the 95% CI of the "
        "most accurate one: 0.800, against 0.900 (0.800 to 0.950) for efficientnetb7"
    )
