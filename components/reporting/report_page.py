"""The report of a run as one self-contained HTML page."""

import math
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from components.candidates.hyperparameters import BLOCKS, KINDS, describe_hyperparameters
from components.candidates.trial_metrics import TRIAL_EPOCHS, TRIAL_SECONDS
from components.conformal import explanation_sentences
from components.reporting import charts
from components.reporting.comparison_text import (
    candidate_name,
    deductions,
    difference_to_winner,
    is_out_of_fold,
    selection_rule,
)
from components.reporting.html_templates import render
from components.reporting.report_data import RANDOM_WEIGHTS_NOTE
from components.statistical_tests import SIGNIFICANCE, p_text
from serving.labels import STABLE

_POLICIES = {
    "no_harm": "no harm compared with the champion: not significantly worse (one-sided exact McNemar p of at least "
    f"{SIGNIFICANCE:g}), and the accuracy difference is at least -{{margin:g}}",
    "not_worse": "not worse than the champion: the 95% CI of the paired accuracy difference begins at -{margin:g} or "
    "above",
    "better": "better than the champion: more wins than losses",
    "significantly_better": "significantly better than the champion: more wins than losses, and exact McNemar p below "
    f"{SIGNIFICANCE:g}",
}
_SHOWN_CONFUSIONS = 5
# Columns of the table of trials: key of a trial and its format.
_TRIAL_COLUMNS: dict[str, tuple[str, str]] = {
    "Kind": ("kind", "{}"),
    "Blocks": ("blocks", "{}"),
    "L2 penalty": ("l2", "{:g}"),
    "Learning rate": ("learning_rate", "{:.2g}"),
    "Units": ("units", "{}"),
    "Dropout": ("dropout", "{:g}"),
    "Weight decay": ("weight_decay", "{:g}"),
    "Epochs": (TRIAL_EPOCHS, "{}"),
    "Time (s)": (TRIAL_SECONDS, "{:.1f}"),
}


def report_page(documents: dict[str, Any]) -> str:
    """Return the report page: a summary (models, data, rules, results, registry labels), then the details.

    Args:
        documents: Documents of the run; see `components.reporting.report_data.load_documents`.
    """
    gate, objective = documents["gate"], documents["objective"]
    settings = documents["settings"]
    return render(
        "report",
        **documents | {"settings": yaml.safe_dump(settings, sort_keys=False)},
        data_source=settings["data"],
        workdir=shlex.quote(settings["workdir"]),
        tensorboard=documents["logdir"] and f"tensorboard --logdir {shlex.quote(documents['logdir'])}",
        stable=gate["serving"].get(STABLE),
        **_selection(documents["comparison"]),
        policy=_POLICIES[gate["rules"]["policy"]].format(**gate["rules"]),
        accuracy_difference=gate["comparison"] and _accuracy_difference(gate["comparison"]),
        gate_rows=_gate_rows(gate),
        power=gate.get("power"),
        slices={row["breed"]: row for row in gate["slices"]},
        curves={
            name: charts.learning_curves(name, training)
            for name, training in documents["training"].items()
            if training["history"]
        },
        tuning={name: _tuning(name, trials, objective) for name, trials in documents["trials"].items()},
        confusions=_confusions(documents["test"]["confusion"]),
        calibration_chart=charts.calibration_curve(documents["test"]["calibration"]["bins"]),
        explanation=explanation_sentences(documents["test"].get("explain")),
        number=_format_number,
        random_weights_note=RANDOM_WEIGHTS_NOTE,
    )


def _format_number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if charts.is_finite(value) else "not finite"


def _selection(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return the rule in words and, if the accuracies are out of fold, what the table of candidates shows about it."""
    values = {"selection_rule": selection_rule(comparison), "candidate_name": candidate_name}
    if not is_out_of_fold(comparison):
        return values | {"out_of_fold": None}
    others = [row for row in comparison["candidates"] if row["backbone"] != comparison["winner"]]
    bounds = [bound for row in others for bound in row["difference_ci95"]]
    return values | {
        "out_of_fold": {
            "photos": comparison["split_sizes"]["train"] + comparison["split_sizes"]["eval"],
            "difference": difference_to_winner,
            # Scale of the pictures of the differences, in points.
            "scale": max(1, math.ceil(100 * max(map(abs, bounds), default=0))),
            "deductions": deductions(comparison) if comparison["price"] else None,
        }
    }


def _tuning(name: str, trials: list[dict[str, Any]], objective: str) -> dict[str, Any]:
    """Return the table of a search, the number of trials that diverged, the best one and the chart of the trials.

    The best trial and the chart are None if all trials diverged.
    """
    best = charts.best_trial(trials, objective)
    # Without networks or without logistic regressions, the columns of their hyperparameters would be empty.
    columns = {title: column for title, column in _TRIAL_COLUMNS.items() if any(column[0] in trial for trial in trials)}
    return {
        "number": len(trials),
        "columns": [objective, *columns],
        "rows": [[_format_number(trial["score"]), *_trial_cells(trial, columns.values())] for trial in trials],
        "diverged": sum(not charts.is_finite(trial["score"]) for trial in trials),
        "best": best and {"score": best["score"], "head": describe_hyperparameters(best)},
        "chart": best and charts.tuning_trials(name, trials, objective),
    }


def _trial_cells(trial: dict[str, Any], columns: Iterable[tuple[str, str]]) -> list[str]:
    words = KINDS | BLOCKS
    return [form.format(words.get(trial[key], trial[key])) if key in trial else "" for key, form in columns]


def _gate_rows(gate: dict[str, Any]) -> list[tuple[str, str, str]]:
    """One row for each rule of the gate: its settings, the requirement and the result."""
    rules, candidate = gate["rules"], gate["candidate"]
    low, high = candidate["test_accuracy_ci95"]
    enforced = [row for row in gate["slices"] if row["enforced"]]
    if gate["comparison"] is None:
        policy = slices = f"not compared: {gate['not_compared']}"
    else:
        policy = f"accuracy difference {_accuracy_difference(gate['comparison'])}; {_p_values(gate['comparison'])}"
        slices = f"no breed has {rules['min_slice']} compared photos"
    if enforced:
        worst = max(enforced, key=lambda row: row["champion"] - row["candidate"])
        slices = (
            f"{len(enforced)} of {len(gate['slices'])} breeds have enough photos; largest drop "
            f"{max(worst['champion'] - worst['candidate'], 0):.3f} ({worst['breed']})"
        )
    return [
        ("min_test_photos", f"at least {rules['min_test_photos']} test photos", f"{candidate['test_photos']}"),
        (
            "min_accuracy",
            f"test accuracy of at least {rules['min_accuracy']:g}",
            f"{candidate['test_accuracy']:.3f} (95% CI {low:.3f} to {high:.3f})",
        ),
        ("above_majority", _majority_requirement(gate), _majority_result(gate["majority"])),
        ("policy, margin", _POLICIES[rules["policy"]].format(**rules), policy),
        (
            "min_slice, max_slice_drop",
            f"no significant accuracy drop of more than {rules['max_slice_drop']:g} from the champion on a breed with "
            f"at least {rules['min_slice']} compared photos",
            slices,
        ),
    ]


def _accuracy_difference(comparison: dict[str, Any]) -> str:
    """The difference with its interval and the counts behind it."""
    if "accuracy_difference_ci95" in comparison:
        low, high = comparison["accuracy_difference_ci95"]
        interval = f"95% CI {low:+.3f} to {high:+.3f}"
    else:  # a gate.json of an earlier version
        interval = (
            "95% CI lower bound {accuracy_difference_lower95:+.3f} (bootstrap) or "
            "{accuracy_difference_score_lower95:+.3f} (score interval), loss rate at most {lost_share_upper95:.1%}"
        ).format(**comparison)
    return (
        f"{comparison['accuracy_difference']:+.3f}, {interval}; wins {comparison['only_candidate_right']}, losses "
        f"{comparison['only_champion_right']}, photos {comparison['photos']}"
    )


def _p_values(comparison: dict[str, Any]) -> str:
    text = f"exact McNemar {p_text(comparison['mcnemar_p'])}"
    if "log_likelihood_worse_p" not in comparison:  # a gate.json of an earlier version
        return text
    return text + (
        f", one-sided {p_text(comparison['mcnemar_worse_p'])} (candidate worse). Log-likelihood of the true breed "
        f"(informative, not a rule): mean difference {comparison['log_likelihood_difference']:+.3f}, one-sided paired "
        f"t-test {p_text(comparison['log_likelihood_worse_p'])} (candidate worse)"
    )


def _majority_requirement(gate: dict[str, Any]) -> str:
    if not gate["rules"]["above_majority"]:
        return "none: the rule is disabled"
    return (
        f"better than the majority-class baseline (always {gate['majority']['breed']}, the largest breed in train): "
        f"one-sided exact McNemar p below {SIGNIFICANCE:g}"
    )


def _majority_result(majority: dict[str, Any]) -> str:
    return (
        f"baseline accuracy {majority['accuracy']:.3f}; wins {majority['only_candidate_right']}, losses "
        f"{majority['only_majority_right']}, photos {majority['photos']}; {p_text(majority['sign_test_p'])}"
    )


def _confusions(confusion: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the most frequent confusions: true breed, predicted breed, count, and photos of the true breed."""
    breeds = confusion["breeds"]
    confusions = [
        {"breed": breed, "predicted": predicted, "count": count, "photos": sum(row)}
        for breed, row in zip(breeds, confusion["rows"], strict=True)
        for predicted, count in zip(breeds, row, strict=True)
        if count and predicted != breed
    ]
    return sorted(confusions, key=lambda pair: -pair["count"])[:_SHOWN_CONFUSIONS]
