"""The choice between candidates by their out-of-fold predictions."""

import itertools
import math

import pytest

from components.candidates.selection import difference_to_winner, out_of_fold_metrics, select

SMALL = {"backbone": "xception", "oof_accuracy": 0.80, "parameters": 20_000_000, "multiply_adds": 8_000_000_000}
EQUAL = {"backbone": "resnet50", "oof_accuracy": 0.80, "parameters": 25_000_000, "multiply_adds": 4_000_000_000}
BEST = {"backbone": "ensemble", "oof_accuracy": 0.83, "parameters": 80_000_000, "multiply_adds": 16_000_000_000}


def predictions(*correct: bool, probability: float = 0.5) -> list[dict]:
    return [{"content_hash": f"{i}", "correct": flag, "probability": probability} for i, flag in enumerate(correct)]


@pytest.mark.parametrize("rows", itertools.permutations([SMALL, EQUAL, BEST]))
def test_most_accurate_candidate_wins_without_a_price_in_any_order(rows):
    assert select(list(rows), 0, "parameters") == (
        "ensemble",
        "most accurate out of fold: 0.830, xception 0.800",
    )


@pytest.mark.parametrize(("price", "winner"), [(1.4, "ensemble"), (1.6, "xception")])
def test_price_is_paid_for_each_doubling_of_the_size(price, winner):
    # The ensemble is 3 points better and has two doublings of the parameters of Xception.
    chosen, reason = select([SMALL, EQUAL, BEST], price, "parameters")
    assert chosen == winner
    assert f"after a deduction of {price} points for each doubling of the number of parameters" in reason


def test_price_of_multiply_adds_favours_the_cheaper_forward_pass():
    chosen, reason = select([SMALL, EQUAL, BEST], 2, "multiply_adds")
    assert chosen == "resnet50"
    assert "multiply-adds" in reason
    assert "the deductions are 0.0 and " in reason


def test_a_candidate_without_multiply_adds_has_a_price_of_zero():
    free = SMALL | {"multiply_adds": 0}
    assert select([free, EQUAL, BEST], 1, "multiply_adds")[0] == "xception"


@pytest.mark.parametrize("rows", itertools.permutations([SMALL, EQUAL]))
def test_smaller_of_equally_accurate_candidates_wins(rows):
    assert select(list(rows), 0, "parameters") == (
        "xception",
        "as accurate out of fold as resnet50 (0.800), with fewer parameters",
    )


def test_single_candidate_wins_with_its_own_reason():
    assert select([SMALL], 1, "parameters") == ("xception", "the only candidate")


def test_metrics_cover_all_photos():
    metrics = out_of_fold_metrics(predictions(True, True, False, False))
    assert metrics["oof_accuracy"] == 0.5
    assert metrics["oof_loss"] == pytest.approx(math.log(2))
    assert metrics["oof_photos"] == 4
    low, high = metrics["oof_accuracy_ci95"]
    assert 0.1 < low < 0.2 < 0.8 < high < 0.9
    assert out_of_fold_metrics(predictions(True, probability=0.0))["oof_loss"] == pytest.approx(16.1, abs=0.1)


def test_difference_is_paired_by_photo():
    winner = predictions(*[True] * 60, *[False] * 40)
    agreeing = predictions(*[True] * 55, *[False] * 45)
    opposite = predictions(*[False] * 45, *[True] * 55)
    same_order = difference_to_winner(agreeing, winner)
    assert same_order["difference_to_winner"] == pytest.approx(-0.05)
    assert difference_to_winner(list(reversed(agreeing)), winner) == same_order
    unlike = difference_to_winner(opposite, winner)
    assert unlike["difference_to_winner"] == pytest.approx(-0.05)
    (low, high), (wide_low, wide_high) = same_order["difference_ci95"], unlike["difference_ci95"]
    assert wide_low < low < -0.05 < high < wide_high
    assert high < 0.01
    assert difference_to_winner(winner, winner)["difference_to_winner"] == 0
