"""Parts of a comparison of candidates that the report page and the summaries show alike."""

import math
from typing import Any

_SIZES = {"parameters": "number of parameters", "multiply_adds": "number of multiply-adds per photo"}
# Rules of earlier versions.
_FORMER_RULES = {
    "smaller_within_interval": "the backbone with the fewest parameters among those whose eval accuracy lies in the "
    "95% CI of the most accurate one",
    "most_accurate": "the backbone with the highest eval accuracy; ties go to the one with fewer parameters",
}


def is_out_of_fold(comparison: dict[str, Any]) -> bool:
    """Whether the winner was chosen by out-of-fold accuracy; earlier versions chose by the accuracy on eval."""
    return "price" in comparison


def candidate_name(row: dict[str, Any]) -> str:
    """Name of a candidate; that of an ensemble includes its backbones."""
    backbones = row.get("backbones", [row["backbone"]])
    return row["backbone"] if len(backbones) == 1 else f"{row['backbone']} ({' + '.join(backbones)})"


def difference_to_winner(row: dict[str, Any], comparison: dict[str, Any]) -> str:
    """The paired difference of a candidate's accuracy to that of the winner, with its 95% CI, in points."""
    if row["backbone"] == comparison["winner"]:
        return "winner"
    low, high = (100 * bound for bound in row["difference_ci95"])
    return f"{100 * row['difference_to_winner']:+.1f} ({low:+.1f} to {high:+.1f})"


def selection_rule(comparison: dict[str, Any]) -> str:
    """The rule that chose the winner, in words."""
    if not is_out_of_fold(comparison):
        return _FORMER_RULES[comparison["rule"]]
    highest = "the candidate with the highest out-of-fold accuracy on train + eval"
    if comparison["price"]:
        size = _SIZES[comparison["price_unit"]]
        highest += f", after a deduction of {comparison['price']:g} points for each doubling of the {size}"
    return f"{highest}; ties go to the one with fewer parameters"


def deductions(comparison: dict[str, Any]) -> dict[str, float]:
    """Points that the price deducts from the accuracy of each candidate, relative to the smallest candidate."""
    sizes = {row["backbone"]: max(row[comparison["price_unit"]], 1) for row in comparison["candidates"]}
    smallest = min(sizes.values())
    return {name: comparison["price"] * math.log2(size / smallest) for name, size in sizes.items()}
