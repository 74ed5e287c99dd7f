"""Rules for replacing the champion with a candidate: pure functions of the Evaluators' results on test."""

import hashlib
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from components.evaluation_result import EvaluationResult
from components.release.gate_policies import check_policy, meets_policy, paired_comparison, requirement
from components.release.gate_power import gate_power
from components.release.new_photos import describe_new_photos, new_photos
from components.statistical_tests import SIGNIFICANCE, p_text, sign_test, wilson_interval
from serving.names import counted

# With fewer wins, the sign test cannot be significant.
_MIN_SIGNIFICANT_WINS = math.ceil(math.log2(1 / SIGNIFICANCE))
# Accuracies are ratios of counts; their differences have rounding errors.
_ROUNDING_ERROR = 1e-9


@dataclass(frozen=True)
class Rules:
    """Thresholds of the gate; see `gate` in the settings.

    Raises:
        ValueError: If there is no such policy.
    """

    min_accuracy: float
    min_test_photos: int
    above_majority: bool
    policy: str
    margin: float
    min_slice: int
    max_slice_drop: float

    def __post_init__(self):
        check_policy(self.policy)


@dataclass
class Decision:
    """Whether the candidate passes the gate, and why.

    Attributes:
        outcome: "blessed" (passed), "refused" (rejected) or "nothing_new".
        majority: Comparison of the candidate with the majority-class baseline; None without test photos.
        comparison: Numbers of the paired comparison with the champion; None if there was no comparison.
        not_compared: Reason why there was no comparison; None if there was one.
        slices: One row for each breed of the comparison.
    """

    outcome: str = "blessed"
    majority: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    not_compared: str | None = None
    slices: list[dict[str, Any]] = field(default_factory=list)
    _reasons: list[tuple[str, str]] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Facts, plus the reasons against a rejected candidate or the reasons for any other candidate."""
        omitted = "for" if self.outcome == "refused" else "against"
        return [reason for kind, reason in self._reasons if kind != omitted]

    def support(self, reason: str) -> None:
        """Add a reason for the candidate."""
        self._reasons.append(("for", reason))

    def reject(self, reason: str) -> None:
        """Reject the candidate and add the reason."""
        self.outcome = "refused"
        self._reasons.append(("against", reason))

    def add_fact(self, fact: str) -> None:
        """Add a fact that is reported with every outcome."""
        self._reasons.append(("fact", fact))

    def skip_comparison(self, reason: str) -> None:
        """Record why the candidate is not compared with the champion."""
        self.not_compared = reason
        self.add_fact(reason)


def decide(
    rules: Rules,
    candidate: list[dict[str, Any]],
    champion: list[dict[str, Any]],
    candidate_breeds: list[str],
    champion_info: dict[str, Any] | None,
    train_photos: dict[str, int],
) -> Decision:
    """Apply the rules to the candidate's outcomes on test and compare them with the champion's photo by photo.

    Args:
        rules: Thresholds.
        candidate: The candidate's outcomes from the Evaluator, one row per photo.
        champion: The champion's outcomes on the same photos; empty if there is nothing to compare with.
        candidate_breeds: Breeds that the candidate predicts.
        champion_info: Contents of champion.json; None without a champion.
        train_photos: Number of train photos of each breed.
    """
    decision = Decision(majority=_majority_baseline(candidate, train_photos))
    if champion_info and not champion_info["unreadable"] and champion_info["is_candidate"]:
        decision.outcome = "nothing_new"
        decision.skip_comparison(
            "the candidate has the same data, code, weights and settings as champion version "
            f"{champion_info['version']}"
        )
        return decision
    if len(candidate) < rules.min_test_photos:
        decision.reject(
            f"{counted(len(candidate), 'test photo')}, fewer than gate.min_test_photos={rules.min_test_photos}: "
            "add photos or increase split.test"
        )
    if not candidate:
        decision.not_compared = "there are no test photos"
        return decision
    _check_accuracy(decision, rules, candidate)
    if rules.above_majority:
        _check_majority_baseline(decision)
    comparable = _comparable_photos(decision, rules, candidate, candidate_breeds, champion_info)
    if comparable:
        _compare_with_champion(decision, rules, comparable, champion, champion_info["version"])
    return decision


def breed_summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics that accuracy hides if the breeds differ in size.

    Args:
        outcomes: Outcomes from the Evaluator, at least one.

    Returns:
        balanced_accuracy: Mean of the accuracies of the breeds.
        never_recognised: Number of photos of each breed without a correct prediction.
    """
    correct = {breed: [row["correct"] for row in outcomes if row["breed"] == breed] for breed in _breeds(outcomes)}
    return {
        "balanced_accuracy": sum(sum(flags) / len(flags) for flags in correct.values()) / len(correct),
        "never_recognised": {breed: len(flags) for breed, flags in correct.items() if not any(flags)},
    }


def _breeds(outcomes: list[dict[str, Any]]) -> list[str]:
    return sorted({row["breed"] for row in outcomes})


def _check_accuracy(decision: Decision, rules: Rules, candidate: list[dict[str, Any]]) -> None:
    correct, summary = sum(row["correct"] for row in candidate), breed_summary(candidate)
    accuracy = correct / len(candidate)
    low, high = wilson_interval(correct, len(candidate))
    measured = (
        f"accuracy {accuracy:.3f} on {counted(len(candidate), 'test photo')} (95% CI {low:.3f} to {high:.3f}; "
        f"balanced accuracy {summary['balanced_accuracy']:.3f})"
    )
    if accuracy < rules.min_accuracy:
        decision.reject(f"{measured} is below gate.min_accuracy={rules.min_accuracy:g}")
    else:
        decision.support(f"{measured} meets gate.min_accuracy={rules.min_accuracy:g}")
    if summary["never_recognised"]:
        breeds = ", ".join(f"{breed} (0 of {photos})" for breed, photos in summary["never_recognised"].items())
        decision.add_fact(f"no correct prediction on test for: {breeds}")


def _majority_baseline(candidate: list[dict[str, Any]], train_photos: dict[str, int]) -> dict[str, Any] | None:
    """Paired comparison with a baseline that always predicts the largest train breed; test photos break ties."""
    if not candidate:
        return None
    test_photos = Counter(row["breed"] for row in candidate)
    breed = max(sorted(train_photos), key=lambda name: (train_photos[name], test_photos[name]))
    wins = sum(row["correct"] and row["breed"] != breed for row in candidate)
    losses = sum(not row["correct"] and row["breed"] == breed for row in candidate)
    return {
        "breed": breed,
        "photos": len(candidate),
        "photos_of_breed": test_photos[breed],
        "accuracy": test_photos[breed] / len(candidate),
        "only_candidate_right": wins,
        "only_majority_right": losses,
        "sign_test_p": sign_test(wins, losses),
    }


def _check_majority_baseline(decision: Decision) -> None:
    majority, required = decision.majority, f"gate.above_majority requires p < {SIGNIFICANCE:g}"
    baseline = (
        f"the majority-class baseline (always {majority['breed']!r}, the largest breed in train; "
        f"accuracy {majority['accuracy']:.3f}): {_wins_and_losses(majority, 'only_majority_right')}, "
        f"one-sided exact McNemar {p_text(majority['sign_test_p'])}"
    )
    others = majority["photos"] - majority["photos_of_breed"]
    if majority["sign_test_p"] < SIGNIFICANCE:
        decision.support(f"significantly better than {baseline}")
    elif others < _MIN_SIGNIFICANT_WINS:
        decision.reject(
            f"cannot be significantly better than {baseline}; {required}. Only {others} of the test photos show other "
            f"breeds; at least {_MIN_SIGNIFICANT_WINS} are needed: add photos of other breeds or increase split.test"
        )
    else:
        decision.reject(f"not significantly better than {baseline}; {required}")


def _wins_and_losses(comparison: dict[str, Any], losses: str) -> str:
    wins, lost = comparison["only_candidate_right"], comparison[losses]
    return (
        f"{counted(wins, 'win')} and {lost} {'loss' if lost == 1 else 'losses'} on "
        f"{counted(comparison['photos'], 'photo')}"
    )


def _comparable_photos(
    decision: Decision,
    rules: Rules,
    candidate: list[dict[str, Any]],
    candidate_breeds: list[str],
    champion_info: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Candidate outcomes on the photos used for the comparison; if there are none, the decision records why."""
    if champion_info is None:
        decision.skip_comparison("no champion to compare with: no version has the label stable")
        return []
    name = f"champion version {champion_info['version']}"
    if champion_info["unreadable"]:
        decision.skip_comparison(
            f"{name} cannot be loaded ({champion_info['unreadable']}): only the absolute thresholds apply"
        )
        return []
    if set(champion_info["breeds"]) != set(candidate_breeds):
        changes = _breed_changes(champion_info["breeds"], candidate_breeds)
        decision.skip_comparison(
            f"the breeds differ from those of {name} ({changes}): only the absolute thresholds apply"
        )
        return []
    training_photos = set(champion_info["learned"])
    unseen = [row for row in candidate if row["content_hash"] not in training_photos]
    seen = f"{name} was trained on {len(candidate) - len(unseen)} of the {len(candidate)} test photos"
    if len(unseen) < min(rules.min_test_photos, len(candidate)):
        decision.skip_comparison(
            f"{seen}, which leaves {counted(len(unseen), 'photo')}, too few for a comparison "
            f"(gate.min_test_photos={rules.min_test_photos}): only the absolute thresholds apply"
        )
        return []
    if len(unseen) < len(candidate):
        decision.add_fact(f"{seen}: the comparison uses the other {len(unseen)}")
    return unseen


def _breed_changes(champion_breeds: list[str], candidate_breeds: list[str]) -> str:
    added, removed = set(candidate_breeds) - set(champion_breeds), set(champion_breeds) - set(candidate_breeds)
    changes = (("added", added), ("removed", removed))
    return "; ".join(f"{change}: {', '.join(sorted(breeds))}" for change, breeds in changes if breeds)


def _compare_with_champion(decision: Decision, rules: Rules, candidate: list, champion: list, version: int) -> None:
    """Apply the policy. Both models classified the same photos, so only photos on which they differ matter."""
    champion_rows = {row["content_hash"]: row for row in champion}
    comparison = paired_comparison(candidate, [champion_rows[row["content_hash"]] for row in candidate])
    decision.comparison = {"policy": rules.policy, **comparison}
    low, high = comparison["accuracy_difference_ci95"]
    counts = _wins_and_losses(comparison, "only_champion_right")
    policy = (
        f"gate.policy={rules.policy} against version {version}: accuracy difference "
        f"{comparison['accuracy_difference']:+.3f} (95% CI {low:+.3f} to {high:+.3f}), "
        f"{requirement(rules.policy, rules.margin, comparison)}; {counts}"
    )
    wins, losses = comparison["only_candidate_right"], comparison["only_champion_right"]
    if meets_policy(rules.policy, rules.margin, wins, losses, comparison["photos"]):
        decision.support(f"meets {policy}")
        if warning := _weak_evidence(rules, comparison):
            decision.support(warning)
    else:
        decision.reject(f"fails {policy}")
    if comparison["log_likelihood_worse_p"] < SIGNIFICANCE:
        decision.add_fact(_worse_probabilities(comparison))
    champion_correct = {key: row["correct"] for key, row in champion_rows.items()}
    decision.slices = [_slice(rules, breed, candidate, champion_correct) for breed in _breeds(candidate)]
    _check_slices(decision, rules)


def _weak_evidence(rules: Rules, comparison: dict[str, Any]) -> str | None:
    """Warning that the evidence is weak although the policy is met; None if it is not weak."""
    photos, (low, _) = counted(comparison["photos"], "photo"), comparison["accuracy_difference_ci95"]
    if rules.policy == "no_harm" and low < -rules.margin:
        return (
            f"{photos} cannot rule out a loss larger than gate.margin={rules.margin:g}: the 95% CI begins at "
            f"{low:+.3f}; `catbreeds gate --power` shows which losses the gate detects"
        )
    if rules.policy == "better" and comparison["mcnemar_p"] >= SIGNIFICANCE:
        return (
            f"the improvement is not statistically significant on {photos}: two equally accurate models differ by at "
            f"least as much with probability {comparison['mcnemar_p']:.4f} (exact McNemar)"
        )
    return None


def _worse_probabilities(comparison: dict[str, Any]) -> str:
    # Not a reason against the candidate: an equally accurate model that is calibrated differently fails this test.
    return (
        "the probabilities of the true breeds are significantly worse: mean difference in log-likelihood "
        f"{comparison['log_likelihood_difference']:+.3f} (one-sided paired t-test, "
        f"{p_text(comparison['log_likelihood_worse_p'])}): the candidate is less accurate or calibrated differently; "
        "compare accuracy and calibration in the report before you promote it"
    )


def _slice(rules: Rules, breed: str, candidate: list, champion_correct: dict[str, bool]) -> dict[str, Any]:
    """Comparison of the two models on the photos of one breed."""
    pairs = [(row["correct"], champion_correct[row["content_hash"]]) for row in candidate if row["breed"] == breed]
    photos = len(pairs)
    return {
        "breed": breed,
        "photos": photos,
        "candidate": sum(correct for correct, _ in pairs) / photos,
        "champion": sum(correct for _, correct in pairs) / photos,
        "worse_p": float(sign_test(pairs.count((False, True)), pairs.count((True, False)))),
        "enforced": photos >= rules.min_slice,
    }


def _check_slices(decision: Decision, rules: Rules) -> None:
    """Reject a significant drop on a breed; the level is divided by the number of tests (Bonferroni's correction)."""
    enforced = [row for row in decision.slices if row["enforced"]]
    for row in enforced:
        drop, limit = row["champion"] - row["candidate"], SIGNIFICANCE / len(enforced)
        if drop <= rules.max_slice_drop + _ROUNDING_ERROR:
            continue
        measured = (
            f"breed {row['breed']!r}: accuracy {row['candidate']:.3f} instead of {row['champion']:.3f} on "
            f"{counted(row['photos'], 'photo')}, a drop of more than gate.max_slice_drop={rules.max_slice_drop:g}"
        )
        test = (
            f"one-sided exact McNemar {p_text(row['worse_p'])}, significant below {limit:.4f} = {SIGNIFICANCE:g} / "
            f"{counted(len(enforced), 'breed')}"
        )
        if row["worse_p"] < limit:
            decision.reject(f"{measured} and significant ({test})")
        else:
            decision.add_fact(f"{measured}, which may be due to chance ({test})")


def gate_document(
    rules: Rules,
    record: dict[str, Any],
    evaluation: EvaluationResult,
    champion_info: dict[str, Any] | None,
    champion_evaluation: EvaluationResult,
    ingest: dict[str, Any],
    photos: list[dict[str, Any]],
) -> dict[str, Any]:
    """Contents of gate.json: the decision, its reasons and the numbers behind them.

    Args:
        rules: Thresholds.
        record: Model record of the candidate; see `serving.model_files`.
        evaluation: Evaluation of the candidate on test.
        champion_info: Contents of champion.json.
        champion_evaluation: Evaluation of the champion on the same photos.
        ingest: Contents of report.json from ImageExampleGen.
        photos: Rows of photos.jsonl from ImageExampleGen.
    """
    train_photos = {breed: counts["train"] for breed, counts in ingest["breeds"].items()}
    decision = decide(
        rules, evaluation.outcomes, champion_evaluation.outcomes, record["breeds"], champion_info, train_photos
    )
    new = new_photos(photos, champion_info, evaluation.outcomes, champion_evaluation.outcomes)
    if new and (fact := describe_new_photos(new)):
        decision.add_fact(fact)
    measured_on = sorted(row["content_hash"] for row in evaluation.outcomes)
    return {
        "blessed": decision.outcome == "blessed",
        "outcome": decision.outcome,
        "reasons": decision.reasons,
        "rules": asdict(rules),
        "measured_on": {
            "split": "test",
            "photos": len(measured_on),
            "digest": hashlib.sha256("\n".join(measured_on).encode()).hexdigest(),
        },
        "candidate": {
            "backbone": record["backbone"]["architecture"],
            "weights": record["backbone"]["weights"],
            "model_digest": record["model_digest"],
            **_test_metrics(evaluation),
            "explain": evaluation.metrics and evaluation.metrics.get("explain"),
        },
        "champion": champion_info
        and {
            **{key: value for key, value in champion_info.items() if key not in ("learned", "tested")},
            **_test_metrics(champion_evaluation),
        },
        "majority": decision.majority,
        "comparison": decision.comparison,
        "power": gate_power(rules.policy, rules.margin, evaluation.outcomes, decision.comparison),
        "not_compared": decision.not_compared,
        "slices": decision.slices,
        "new_photos": new,
    }


def _test_metrics(evaluation: EvaluationResult) -> dict[str, Any]:
    if evaluation.metrics is None:
        return {}
    overall = evaluation.metrics["overall"]
    return {
        "test_accuracy": overall["accuracy"],
        "test_accuracy_ci95": overall["accuracy_ci95"],
        "test_loss": overall["loss"],
        "test_photos": overall["photos"],
        **breed_summary(evaluation.outcomes),
    }
