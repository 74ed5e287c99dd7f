"""The choice between candidates by their out-of-fold predictions: pure functions of rows and predictions."""

import math
from typing import Any

from components.statistical_tests import paired_difference_interval, wilson_interval

_MIN_PROBABILITY = 1e-7  # as in Keras, so that one photo cannot make the loss infinite
_UNITS = {"parameters": "parameters", "multiply_adds": "multiply-adds"}


def out_of_fold_metrics(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of a candidate over all photos of train and eval.

    Args:
        predictions: Rows of out_of_fold.jsonl.

    Returns:
        oof_accuracy: Share of correct predictions.
        oof_accuracy_ci95: 95% Wilson interval of the accuracy.
        oof_loss: Mean cross-entropy, in nats.
        oof_photos: Number of photos.
    """
    photos, correct = len(predictions), sum(row["correct"] for row in predictions)
    losses = (-math.log(max(row["probability"], _MIN_PROBABILITY)) for row in predictions)
    return {
        "oof_accuracy": correct / photos,
        "oof_accuracy_ci95": list(wilson_interval(correct, photos)),
        "oof_loss": sum(losses) / photos,
        "oof_photos": photos,
    }


def difference_to_winner(predictions: list[dict[str, Any]], winner: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the accuracies of a candidate and of the winner on the same photos.

    Args:
        predictions: Rows of out_of_fold.jsonl of the candidate.
        winner: Those of the winner.

    Returns:
        difference_to_winner: Accuracy of the candidate minus that of the winner.
        difference_ci95: 95% score interval of the paired difference.
    """
    winner_correct = {row["content_hash"]: row["correct"] for row in winner}
    pairs = [(row["correct"], winner_correct[row["content_hash"]]) for row in predictions]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    return {
        "difference_to_winner": (wins - losses) / len(pairs),
        "difference_ci95": list(paired_difference_interval(wins, losses, len(pairs))),
    }


def select(candidates: list[dict[str, Any]], price: float, price_unit: str) -> tuple[str, str]:
    """Return the name of the winner and the reason for the choice.

    The winner is the candidate with the highest out-of-fold accuracy, in points, minus the price of its size: `price`
    for each doubling of the size of the smallest candidate. If two are equal, the one with fewer parameters wins.

    Args:
        candidates: Rows of comparison.json, in any order.
        price: Points of accuracy for each doubling of the size.
        price_unit: Size of a candidate: "parameters" or "multiply_adds".
    """
    sizes = {row["backbone"]: max(row[price_unit], 1) for row in candidates}
    smallest = min(sizes.values())
    cost = {name: price * math.log2(size / smallest) for name, size in sizes.items()}

    def net_points(row: dict[str, Any]) -> float:
        return 100 * row["oof_accuracy"] - cost[row["backbone"]]

    ranked = sorted(candidates, key=lambda row: (-net_points(row), row["parameters"], row["backbone"]))
    best = ranked[0]
    if len(ranked) == 1:
        return best["backbone"], "the only candidate"
    second = ranked[1]
    if net_points(second) == net_points(best):
        return best["backbone"], (
            f"as accurate out of fold as {second['backbone']} ({best['oof_accuracy']:.3f})"
            f"{' after the deductions' if price else ''}, with fewer parameters"
        )
    accuracies = f"{best['oof_accuracy']:.3f}, {second['backbone']} {second['oof_accuracy']:.3f}"
    if not price:
        return best["backbone"], f"most accurate out of fold: {accuracies}"
    return best["backbone"], (
        f"highest accuracy out of fold after a deduction of {price:g} points for each doubling of the number of "
        f"{_UNITS[price_unit]}: {accuracies}; the deductions are {cost[best['backbone']]:.1f} and "
        f"{cost[second['backbone']]:.1f} points"
    )
