"""Charts of the report as inline SVG that uses the font of the page; equal input produces equal bytes."""

import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from components.candidates.trial_metrics import TRIAL_EPOCHS
from components.statistical_tests import wilson_interval

# Same colours as templates/base.html.j2.
_INK, _SOFT, _LINE, _ACCENT = "#1f2430", "#667085", "#e4e7ec", "#b4540a"
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
# Trials whose distance from the best trial is above this multiple of the median distance are outliers: on the scale,
# they would flatten the other trials.
_OUTLIER_FACTOR = 4
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
    """Loss and accuracy per epoch on train (grey) and eval (orange), with a dashed line at the best epoch.

    Args:
        name: Name of the backbone.
        training: Contents of training.json of the backbone; `history` has one number per epoch for each curve.
    """
    history = training["history"]
    figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
        for curve, split, colour in ((metric, "train", _SOFT), (f"val_{metric}", "eval", _ACCENT)):
            epochs = range(1, len(history[curve]) + 1)
            axes.plot(epochs, history[curve], "o-", color=colour, lw=1.5, ms=2.5, label=split, gid=f"curve-{curve}")
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
    """Score of each trial over each of the four hyperparameters; the best trial is an orange diamond.

    The area of a mark grows with the number of epochs. Trials that diverged and outliers are triangles at the edge of
    the panel.

    Args:
        name: Name of the backbone.
        trials: Rows of tuner_results.json, at least one with a finite score.
        objective: Metric of the score: "val_loss" or "val_accuracy".
    """
    best = best_trial(trials, objective)
    limit = _cost_limit([_cost(trial, objective) for trial in trials])
    others = [trial for trial in trials if trial is not best]
    inliers = [trial for trial in others if _cost(trial, objective) <= limit]
    outliers = [trial for trial in others if _cost(trial, objective) > limit]
    edge, triangle = (0.96, "^") if objective == "val_loss" else (0.04, "v")
    groups = (("inlier", inliers, "o", _SOFT), ("outlier", outliers, triangle, _SOFT), ("best", [best], "D", _ACCENT))
    max_epochs = max(trial[TRIAL_EPOCHS] for trial in trials)
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    for axes, parameter in zip(panels.flat, ("learning_rate", "units", "dropout", "weight_decay"), strict=True):
        position = _set_up_axis(axes, parameter, [trial[parameter] for trial in trials])
        axes.margins(y=0.15)
        for group, shown, marker, colour in groups:
            axes.scatter(
                [position(trial[parameter]) for trial in shown],
                [edge if group == "outlier" else trial["score"] for trial in shown],
                [10 + 40 * trial[TRIAL_EPOCHS] / max_epochs for trial in shown],
                transform=axes.get_xaxis_transform() if group == "outlier" else axes.transData,
                marker=marker,
                color=colour,
                alpha=1 if group == "best" else 0.6,
                linewidths=0,
                gid=f"{group}-{parameter}",
            )
        axes.set_xlabel(parameter.replace("_", " "))
    for axes in panels[:, 0]:
        axes.set_ylabel(objective.replace("val_", "eval "))
    return _svg(figure, f"tuning-{name}", f"{objective} of each trial of {name} over each hyperparameter")


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


def _cost_limit(costs: list[float]) -> float:
    """Return the highest cost that is not an outlier."""
    finite = [value for value in costs if math.isfinite(value)]
    best, median = min(finite), statistics.median(finite)
    return best + _OUTLIER_FACTOR * (median - best) if median > best else max(finite)


def _set_up_axis(axes: Axes, parameter: str, values: Sequence[float]) -> Callable[[float], float]:
    """Set up the horizontal axis for a hyperparameter; return the function that maps its values to positions."""
    if parameter == "learning_rate":
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
