"""The report of a run for people: one self-contained HTML page."""

import shlex
from typing import Any

import yaml

from components.release.gate_rules import SIGNIFICANCE
from components.reporting import charts
from components.reporting.pages import render
from serving.labels import STABLE

_SELECTION_RULES = {
    "smaller_within_interval": "of the backbones whose accuracy on eval lies in the 95 % interval of the most accurate "
    "one's, the one with the fewest parameters",
    "most_accurate": "the backbone that is most accurate on eval; of equals, the one with fewer parameters",
}
_POLICIES = {
    "not_worse": "no worse than the model in service: the 95 % interval of the paired difference in accuracy begins at "
    "-{margin:g} or above",
    "better": "better than the model in service: more photos won than lost",
    "significantly_better": f"better than the model in service: more photos won than lost, and exact McNemar p below "
    f"{SIGNIFICANCE:g}",
}
_CONFUSIONS_TOLD = 5


def report_page(documents: dict[str, Any]) -> str:
    """The page: what was compared, on which photos, by which rule, how sure we are, what is served now; then all else.

    Args:
        documents: what the run found, see `pipeline.results.report.collect`.
    """
    gate, objective = documents["gate"], documents["objective"]
    settings = documents["settings"]
    return render(
        "report",
        **documents | {"settings": yaml.safe_dump(settings, sort_keys=False)},
        data_source=settings["data"],
        workdir=shlex.quote(settings["workdir"]),
        stable=gate["serving"].get(STABLE),
        selection_rule=_SELECTION_RULES[documents["comparison"]["rule"]],
        policy=_POLICIES[gate["rules"]["policy"]].format(**gate["rules"]),
        gate_rows=_gate_rows(gate),
        slices={row["breed"]: row for row in gate["slices"]},
        curves={name: charts.learning_curves(name, training) for name, training in documents["training"].items()},
        tuning={name: _tuning(name, trials, objective) for name, trials in documents["trials"].items()},
        confusions=_confusions(documents["test"]["confusion"]),
        calibration_chart=charts.calibration_curve(documents["test"]["calibration"]["bins"]),
        number=_number,
    )


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if charts.is_finite(value) else "not finite"


def _tuning(name: str, trials: list[dict[str, Any]], objective: str) -> dict[str, Any]:
    """A search: its trials, how many `diverged`, the `best` and the `chart`, both None when all diverged."""
    best = charts.best_trial(trials, objective)
    return {
        "trials": trials,
        "diverged": sum(not charts.is_finite(trial["score"]) for trial in trials),
        "best": best,
        "chart": best and charts.tuning_trials(name, trials, objective),
    }


def _gate_rows(gate: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each rule of the gate: the settings it has, what it asks for, what was measured."""
    rules, candidate = gate["rules"], gate["candidate"]
    low, high = candidate["test_accuracy_ci95"]
    enforced = [row for row in gate["slices"] if row["enforced"]]
    if gate["comparison"] is None:
        paired = slices = f"not compared: {gate['not_compared']}"
    else:
        paired = (
            "difference {accuracy_difference:+.3f}, 95 % interval from {accuracy_difference_lower95:+.3f} (bootstrap) "
            "or {accuracy_difference_score_lower95:+.3f} (score interval); of {photos} photos {only_candidate_right} "
            "won, {only_champion_right} lost; exact McNemar p {mcnemar_p:.4f}"
        ).format(**gate["comparison"])
        slices = f"no breed has {rules['min_slice']} such photos"
    if enforced:
        worst = max(enforced, key=lambda row: row["champion"] - row["candidate"])
        slices = (
            f"{len(enforced)} of {len(gate['slices'])} breeds have as many; the largest loss is "
            f"{max(worst['champion'] - worst['candidate'], 0):.3f} ({worst['breed']})"
        )
    return [
        ("min_test_photos", f"at least {rules['min_test_photos']} test photos", f"{candidate['test_photos']}"),
        (
            "min_accuracy",
            f"accuracy on test of at least {rules['min_accuracy']:g}",
            f"{candidate['test_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f})",
        ),
        ("above_majority", _majority_rule(gate), _majority_measured(gate["majority"])),
        ("policy, margin", _POLICIES[rules["policy"]].format(**rules), paired),
        (
            "min_slice, max_slice_drop",
            f"each breed with at least {rules['min_slice']} test photos loses at most {rules['max_slice_drop']:g} "
            "accuracy against the model in service",
            slices,
        ),
    ]


def _majority_rule(gate: dict[str, Any]) -> str:
    if not gate["rules"]["above_majority"]:
        return "nothing: the rule is switched off"
    return (
        f"better than always answering {gate['majority']['breed']}, the largest breed of train: one-sided exact "
        f"McNemar p below {SIGNIFICANCE:g}"
    )


def _majority_measured(majority: dict[str, Any]) -> str:
    return (
        "always answering it is right on {accuracy:.3f} of the test photos; of {photos} photos "
        "{only_candidate_right} won, {only_majority_right} lost; p {sign_test_p:.4f}"
    ).format(**majority)


def _confusions(confusion: dict[str, Any]) -> list[dict[str, Any]]:
    """The most frequent mistakes: true breed, what it was called, how often, of how many photos."""
    breeds = confusion["breeds"]
    found = [
        {"breed": breed, "called": called, "count": count, "photos": sum(row)}
        for breed, row in zip(breeds, confusion["rows"], strict=True)
        for called, count in zip(breeds, row, strict=True)
        if count and called != breed
    ]
    return sorted(found, key=lambda mistake: -mistake["count"])[:_CONFUSIONS_TOLD]
