"""Charts of the report as inline SVG that uses the font of the page; equal input produces equal bytes."""

import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from components.candidates.hyperparameters import BLOCKS
from components.candidates.trial_metrics import TRIAL_EPOCHS
from components.statistical_tests import wilson_interval

# Same colors as templates/base.html.j2.
_INK, _SOFT, _LINE, _ACCENT = "#1f2430", "#667085", "#e4e7ec", "#b4540a"
_BLUE = "#2b6cb0"
# Width in inches; narrow, so that a 9 pt font is not scaled down on a phone.
_WIDTH = 3.4
STYLE = {
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.labelsize": 9,
    "axes.edgecolor": "#98a2b3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "catbreeds",
}
# Above this ratio of the largest to the smallest value, a linear scale would flatten all but the largest values.
_MAX_LINEAR_RATIO = 30
_MAX_LINEAR_RATIO_OF_TRIALS = 2
# Trials whose distance from the best trial is above this multiple of the median distance are outliers: on the scale,
# they would flatten the other trials.
_OUTLIER_FACTOR = 4
# Marker and color of each group of trials: by blocks of the head, outliers, the best trial.
_MARKS = {"last": ("o", _SOFT), "all": ("s", _BLUE), "outlier": ("^", _SOFT), "best": ("D", _ACCENT)}
# Charts of drift: bins of a number; categories, those with the largest differences.
_DRIFT_BINS, _DRIFT_CATEGORIES = 20, 12
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_finite(score: float | None) -> bool:
    """Whether a score is a finite number; after training has diverged it is NaN, infinite or None."""
    return score is not None and math.isfinite(score)


def best_trial(trials: list[dict[str, Any]], objective: str) -> dict[str, Any] | None:
    """Return the trial with the best finite score; None if no score is finite.

    Args:
        trials: Rows of tuner_results.json.
        objective: "val_loss" (lower is better) or "val_accuracy" (higher is better).
    """
    finite = [trial for trial in trials if is_finite(trial["score"])]
    return min(finite, key=lambda trial: _cost(trial, objective), default=None)


def _cost(trial: dict[str, Any], objective: str) -> float:
    """Return the score, negated if higher is better; infinity if training diverged."""
    if not is_finite(trial["score"]):
        return math.inf
    return trial["score"] if objective == "val_loss" else -trial["score"]


@matplotlib.rc_context(STYLE)
def learning_curves(name: str, training: dict[str, Any]) -> Markup:
    """Loss and accuracy per epoch on train (gray) and eval (orange), with a dashed line at the best epoch.

    Args:
        name: Name of the candidate.
        training: Contents of training.json of a trained head; `history` has one number per epoch for each curve.
    """
    history = training["history"]
    figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
        for curve, split, color in ((metric, "train", _SOFT), (f"val_{metric}", "eval", _ACCENT)):
            epochs = range(1, len(history[curve]) + 1)
            axes.plot(epochs, history[curve], "o-", color=color, lw=1.5, ms=2.5, label=split, gid=f"curve-{curve}")
        axes.axvline(training["best_epoch"], color=_SOFT, lw=0.8, ls="--")
        axes.set_ylabel(metric)
    _scale_loss(panels[0], history["loss"] + history["val_loss"])
    panels[1].set_ylim(0, 1.03)
    panels[1].set_xlabel("epoch")
    panels[1].set_xlim(0.5, training["epochs"] + 0.5)
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return _svg(figure, f"learning-{name}", f"Loss and accuracy of {name} per epoch on train and eval")


@matplotlib.rc_context(STYLE)
def tuning_trials(name: str, trials: list[dict[str, Any]], objective: str) -> Markup:
    """Score of each trial: logistic regressions over the L2 penalty, networks over each of their hyperparameters.

    All panels have the same vertical axis. Gray circles are heads on the last block, blue squares are heads on all
    blocks; a line joins the logistic regressions on the same blocks. The area of a network's mark grows with the number
    of epochs. The best trial is an orange diamond, with a dashed line at its score. Trials that diverged and outliers
    are triangles at the edge of the panel.

    Args:
        name: Name of the candidate.
        trials: Trials from `components.candidates.hyperparameters.read_trials`, at least one with a finite score.
        objective: Metric of the score: "val_loss" or "val_accuracy".
    """
    best = best_trial(trials, objective)
    kinds = {trial["kind"] for trial in trials}
    rows = [["l2", "l2"]] if "logistic_regression" in kinds else []
    rows += [["learning_rate", "units"], ["dropout", "weight_decay"]] if "network" in kinds else []
    heights = [1.9 if row == ["l2", "l2"] else 1.5 for row in rows]
    figure = Figure(figsize=(_WIDTH, 0.4 + sum(heights)), layout="constrained")
    panels = figure.subplot_mosaic(rows, sharey=True, height_ratios=heights)
    groups = _group_trials(trials, best, objective)
    if objective == "val_loss":
        _separate_low_losses(
            next(iter(panels.values())), [trial["score"] for trial in (*groups["last"], *groups["all"], best)]
        )
    edge, triangle = (0.96, "^") if objective == "val_loss" else (0.04, "v")
    max_epochs = max(trial.get(TRIAL_EPOCHS, 1) for trial in trials)
    for parameter, axes in panels.items():
        position = _set_up_axis(axes, parameter, [trial[parameter] for trial in trials if parameter in trial])
        axes.margins(y=0.15)
        axes.set_xlabel("L2 penalty" if parameter == "l2" else parameter.replace("_", " "))
        axes.axhline(best["score"], color=_ACCENT, lw=0.8, ls="--")
        for group, (marker, color) in _MARKS.items():
            shown = [trial for trial in groups[group] if parameter in trial]
            axes.scatter(
                [position(trial[parameter]) for trial in shown],
                [edge if group == "outlier" else trial["score"] for trial in shown],
                [10 + 40 * trial.get(TRIAL_EPOCHS, max_epochs / 2) / max_epochs for trial in shown],
                transform=axes.get_xaxis_transform() if group == "outlier" else axes.transData,
                marker=triangle if group == "outlier" else marker,
                color=color,
                alpha=1 if group == "best" else 0.6,
                linewidths=0,
                gid=f"{group}-{parameter}",
            )
    for blocks in BLOCKS:
        joined = [trial for trial in (*groups[blocks], best) if trial["blocks"] == blocks and "l2" in trial]
        points = sorted((trial["l2"], trial["score"]) for trial in joined)
        if points:
            panels["l2"].plot(*zip(*points, strict=True), color=_MARKS[blocks][1], lw=1, gid=f"line-{blocks}")
    if len(kinds) == 2:
        panels["l2"].set_title("Logistic regressions", loc="left", fontsize=9)
        panels["learning_rate"].set_title("Networks", loc="left", fontsize=9)
    for first, _ in rows:
        panels[first].set_ylabel(objective.replace("val_", "eval "))
    used = {blocks: _MARKS[blocks] for blocks in BLOCKS if any(trial["blocks"] == blocks for trial in trials)}
    labels = [Line2D([], [], marker=m, color=c, ls="", ms=5, label=BLOCKS[b]) for b, (m, c) in used.items()]
    figure.legend(handles=labels, loc="outside upper center", ncols=2)
    return _svg(figure, f"tuning-{name}", f"{objective} of each trial of {name} over each hyperparameter")


def _group_trials(
    trials: list[dict[str, Any]], best: dict[str, Any], objective: str
) -> dict[str, list[dict[str, Any]]]:
    """Return the trials by their mark: blocks, "outlier" or "best"."""
    # The limit is the higher one of the two kinds, so that the typical trial of each kind is on the scale.
    limit = max(
        _cost_limit([_cost(trial, objective) for trial in trials if trial["kind"] == kind], _cost(best, objective))
        for kind in {trial["kind"] for trial in trials}
    )
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in _MARKS}
    for trial in trials:
        group = "outlier" if _cost(trial, objective) > limit else trial["blocks"]
        groups["best" if trial is best else group].append(trial)
    return groups


@matplotlib.rc_context(STYLE)
def calibration_curve(bins: list[dict[str, Any]]) -> Markup:
    """Accuracy over mean confidence of each bin with 95% intervals, above the number of photos in each bin.

    Args:
        bins: Rows of `calibration` in metrics.json: number of photos, mean confidence, accuracy.
    """
    confidences, accuracies = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
    intervals = [wilson_interval(round(row["accuracy"] * row["photos"]), row["photos"]) for row in bins]
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    curve.plot((0, 1), (0, 1), color=_SOFT, lw=0.8, ls="--")
    curve.vlines(confidences, *zip(*intervals, strict=True), color=_ACCENT, alpha=0.35, lw=3)
    curve.plot(confidences, accuracies, "o-", color=_ACCENT, lw=1.2, ms=4.5, gid="bins")
    curve.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.03, 1.03))
    counts.bar(confidences, [row["photos"] for row in bins], width=0.05, color=_SOFT)
    counts.set(ylabel="photos", xlabel="confidence")
    counts.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.align_ylabels()
    return _svg(figure, "calibration", "Accuracy over confidence on test")


@matplotlib.rc_context(STYLE)
def two_distributions(name: str, title: str, test: Sequence[float], captured: Sequence[float]) -> Markup:
    """Shares of the values of a number among test photos (gray) and captured photos (orange), in the same bins.

    The outermost bins contain the extreme values of both.

    Args:
        name: Key that is unique in the page.
        title: Name of the number.
        test: Values of the test photos.
        captured: Values of the captured photos.
    """
    pooled = sorted([*test, *captured])
    low, high = pooled[len(pooled) // 50], pooled[-1 - len(pooled) // 50]
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / _DRIFT_BINS
    figure = Figure(figsize=(_WIDTH, 2.2), layout="constrained")
    axes = figure.subplots()
    for values, color, label in ((test, _SOFT, "test photos"), (captured, _ACCENT, "captured photos")):
        bins = [min(max(int((value - low) / width), 0), _DRIFT_BINS - 1) for value in values]
        shares = [bins.count(number) / len(bins) for number in range(_DRIFT_BINS)]
        edges = [low + number * width for number in range(_DRIFT_BINS + 1)]
        axes.stairs(shares, edges, color=color, fill=True, alpha=0.35, label=label, gid=f"bars-{label[:4]}")
    axes.set(xlabel=title, ylabel="share", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return _svg(figure, f"drift-{name}", f"{title} of test photos and captured photos")


@matplotlib.rc_context(STYLE)
def two_shares(name: str, title: str, test: Sequence[Any], captured: Sequence[Any]) -> Markup:
    """Share of each category among test photos (gray) and captured photos (orange), largest differences first.

    Args:
        name: Key that is unique in the page.
        title: Name of the categories.
        test: Categories of the test photos.
        captured: Categories of the captured photos.
    """
    old, new = Counter(map(str, test)), Counter(map(str, captured))
    shares = {key: (old[key] / len(test), new[key] / len(captured)) for key in sorted({*old, *new})}
    shown = sorted(shares, key=lambda key: -abs(shares[key][0] - shares[key][1]))[:_DRIFT_CATEGORIES]
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for side, color, label in ((0, _SOFT, "test photos"), (1, _ACCENT, "captured photos")):
        positions = [row + 0.36 * side for row in range(len(shown))]
        axes.barh(positions, [shares[key][side] for key in shown], height=0.34, color=color, label=label)
    axes.set_yticks([row + 0.18 for row in range(len(shown))], shown)
    axes.invert_yaxis()
    axes.set(xlabel="share")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return _svg(figure, f"drift-{name}", f"{title} of test photos and captured photos")


def _cost_limit(costs: list[float], best: float) -> float:
    """Return the highest cost that is not an outlier.

    Args:
        costs: Costs of the trials of one kind.
        best: Lowest cost of all trials.
    """
    finite = [value for value in costs if math.isfinite(value)]
    if not finite:
        return best
    median = statistics.median(finite)
    return best + _OUTLIER_FACTOR * (median - best) if median > best else max(finite)


def _set_up_axis(axes: Axes, parameter: str, values: Sequence[float]) -> Callable[[float], float]:
    """Set up the horizontal axis for a hyperparameter; return the function that maps its values to positions."""
    if parameter in ("l2", "learning_rate"):
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        exponents = range(low, max(high, low + 1) + 1)
        axes.set_xscale("log")
        axes.set_xlim(10 ** (exponents[0] - 0.1), 10 ** (exponents[-1] + 0.1))
        axes.set_xticks([10.0**exponent for exponent in exponents])
        axes.set_xticklabels(["10" + str(exponent).translate(_SUPERSCRIPTS) for exponent in exponents])
        axes.xaxis.set_minor_locator(NullLocator())
        return float
    # Values of a discrete search space, such as 0, 0.001 and 0.01, are equally spaced.
    choices = sorted(set(values))
    axes.set_xticks(range(len(choices)), [f"{choice:g}" for choice in choices])
    axes.set_xlim(-0.5, len(choices) - 0.5)
    return choices.index


def _separate_low_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Use a log scale if a linear one would draw the lowest losses, between which the search chooses, as equal."""
    if min(losses) > 0 and max(losses) > _MAX_LINEAR_RATIO_OF_TRIALS * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _scale_loss(axes: Axes, losses: Iterable[float | None]) -> None:
    """Use a log scale if the losses span a wide range; show a note if no loss is finite."""
    finite = [loss for loss in losses if is_finite(loss)]
    if not finite:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=_SOFT)
        axes.set_yticks([])
    elif min(finite) > 0 and max(finite) > _MAX_LINEAR_RATIO * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _svg(figure: Figure, key: str, label: str) -> Markup:
    """Render the figure as an <svg> element of an HTML page.

    Args:
        figure: Figure to draw.
        key: Prefix that makes the ids in the SVG unique in the page.
        label: Description of the chart for screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # HTML needs neither the document type nor the namespaces before the <svg> element, and both contain URLs.
    box, drawing = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', buffer.getvalue(), re.DOTALL).groups()
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)  # would apply to the whole page
    drawing = re.sub(r" font-family: [^;]*;", "", drawing)
    drawing = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", drawing)
    drawing = re.sub(r"\n\s*", "\n", drawing)
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(box, label, Markup(drawing))
