"""Charts of the report, by matplotlib: inline SVG in the font of the page, the same bytes for the same numbers."""

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
from components.release.statistics import wilson_interval

# The colours of templates/base.html.j2.
_INK, _SOFT, _LINE, _ACCENT = "#1f2430", "#667085", "#e4e7ec", "#b4540a"
# Narrow, so that 9 points stay 9 points or more where a phone shows the chart.
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
# Beyond this ratio of largest to smallest, a linear scale would flatten all but the largest.
_LINEAR_UP_TO = 30
# Trials so many times as far from the best as the median are off the scale: a few bad ones would flatten the others.
_SCALE_ENDS = 4
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_finite(score: float | None) -> bool:
    """False for what diverged training leaves: NaN, an infinity or nothing."""
    return score is not None and math.isfinite(score)


def best_trial(trials: list[dict[str, Any]], objective: str) -> dict[str, Any] | None:
    """The trial with the best finite score; None where there is none.

    Args:
        trials: rows of tuner_results.json.
        objective: "val_loss" (less is better) or "val_accuracy" (more is better).
    """
    finite = [trial for trial in trials if is_finite(trial["score"])]
    return min(finite, key=lambda trial: _badness(trial, objective), default=None)


def _badness(trial: dict[str, Any], objective: str) -> float:
    """The score where less is better; infinite where training diverged."""
    if not is_finite(trial["score"]):
        return math.inf
    return trial["score"] if objective == "val_loss" else -trial["score"]


@matplotlib.rc_context(STYLE)
def learning_curves(name: str, training: dict[str, Any]) -> Markup:
    """Loss and accuracy by epoch, on train (grey) and eval (orange); a dashed line at the best epoch.

    Args:
        name: of the backbone.
        training: its training.json; `history` has a list of one number an epoch for each curve.
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
    return _svg(figure, f"learning-{name}", f"Loss and accuracy of {name} by epoch, on train and eval")


@matplotlib.rc_context(STYLE)
def tuning_trials(name: str, trials: list[dict[str, Any]], objective: str) -> Markup:
    """The score of each trial over each of the four hyperparameters; the best trial is an orange diamond.

    A mark's area grows with the epochs that the trial had. Trials that diverged, or are far worse than the others, are
    triangles at the edge of the panel.

    Args:
        name: of the backbone.
        trials: rows of tuner_results.json, at least one of them with a finite score.
        objective: what the score is: "val_loss" or "val_accuracy".
    """
    best = best_trial(trials, objective)
    end = _scale_end([_badness(trial, objective) for trial in trials])
    others = [trial for trial in trials if trial is not best]
    near = [trial for trial in others if _badness(trial, objective) <= end]
    far = [trial for trial in others if _badness(trial, objective) > end]
    edge, triangle = (0.96, "^") if objective == "val_loss" else (0.04, "v")
    groups = (("near", near, "o", _SOFT), ("far", far, triangle, _SOFT), ("best", [best], "D", _ACCENT))
    longest = max(trial[TRIAL_EPOCHS] for trial in trials)
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    for axes, parameter in zip(panels.flat, ("learning_rate", "units", "dropout", "weight_decay"), strict=True):
        place = _axis_of(axes, parameter, [trial[parameter] for trial in trials])
        axes.margins(y=0.15)
        for group, shown, marker, colour in groups:
            axes.scatter(
                [place(trial[parameter]) for trial in shown],
                [edge if group == "far" else trial["score"] for trial in shown],
                [10 + 40 * trial[TRIAL_EPOCHS] / longest for trial in shown],
                transform=axes.get_xaxis_transform() if group == "far" else axes.transData,
                marker=marker,
                color=colour,
                alpha=1 if group == "best" else 0.6,
                linewidths=0,
                gid=f"{group}-{parameter}",
            )
        axes.set_xlabel(parameter.replace("_", " "))
    for axes in panels[:, 0]:
        axes.set_ylabel(objective.replace("val_", "eval "))
    return _svg(figure, f"tuning-{name}", f"{objective} of each trial of {name} over its hyperparameters")


@matplotlib.rc_context(STYLE)
def calibration_curve(bins: list[dict[str, Any]]) -> Markup:
    """Share of right answers over mean confidence, with 95 % intervals, above the photos of each bin.

    Args:
        bins: rows of `calibration` in metrics.json: photos, mean confidence, accuracy.
    """
    confidences, accuracies = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
    intervals = [wilson_interval(round(row["accuracy"] * row["photos"]), row["photos"]) for row in bins]
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    curve.plot((0, 1), (0, 1), color=_SOFT, lw=0.8, ls="--")
    curve.vlines(confidences, *zip(*intervals, strict=True), color=_ACCENT, alpha=0.35, lw=3)
    curve.plot(confidences, accuracies, "o-", color=_ACCENT, lw=1.2, ms=4.5, gid="bins")
    curve.set(ylabel="right", xlim=(0, 1), ylim=(-0.03, 1.03))
    counts.bar(confidences, [row["photos"] for row in bins], width=0.05, color=_SOFT)
    counts.set(ylabel="photos", xlabel="confidence")
    counts.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.align_ylabels()
    return _svg(figure, "calibration", "Share of right answers over the confidence of the answer, on test")


def _scale_end(badness: list[float]) -> float:
    """Up to which badness a trial has its place on the scale."""
    finite = [value for value in badness if math.isfinite(value)]
    best, median = min(finite), statistics.median(finite)
    return best + _SCALE_ENDS * (median - best) if median > best else max(finite)


def _axis_of(axes: Axes, parameter: str, values: Sequence[float]) -> Callable[[float], float]:
    """Labels the horizontal axis for a hyperparameter; gives the function from its values to places on that axis."""
    if parameter == "learning_rate":
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        exponents = range(low, max(high, low + 1) + 1)
        axes.set_xscale("log")
        axes.set_xlim(10 ** (exponents[0] - 0.1), 10 ** (exponents[-1] + 0.1))
        axes.set_xticks([10.0**exponent for exponent in exponents])
        axes.set_xticklabels(["10" + str(exponent).translate(_SUPERSCRIPTS) for exponent in exponents])
        axes.xaxis.set_minor_locator(NullLocator())
        return float
    # Values to choose from, such as 0, 0.001 and 0.01: at equal distances, whatever their size.
    choices = sorted(set(values))
    axes.set_xticks(range(len(choices)), [f"{choice:g}" for choice in choices])
    axes.set_xlim(-0.5, len(choices) - 0.5)
    return choices.index


def _scale_loss(axes: Axes, losses: Iterable[float | None]) -> None:
    """A logarithmic scale where a linear one would flatten all but the worst; words where nothing can be drawn."""
    finite = [loss for loss in losses if is_finite(loss)]
    if not finite:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=_SOFT)
        axes.set_yticks([])
    elif min(finite) > 0 and max(finite) > _LINEAR_UP_TO * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _svg(figure: Figure, key: str, label: str) -> Markup:
    """The figure as an element of an HTML page.

    Args:
        figure: what to draw.
        key: makes the ids in the SVG unique in the page.
        label: what the chart shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # What comes before, namespaces and document type, HTML does without; it holds addresses.
    box, drawing = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', buffer.getvalue(), re.DOTALL).groups()
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)  # it would hold for the whole page
    drawing = re.sub(r" font-family: [^;]*;", "", drawing)
    drawing = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", drawing)
    drawing = re.sub(r"\n\s*", "\n", drawing)
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(box, label, Markup(drawing))
