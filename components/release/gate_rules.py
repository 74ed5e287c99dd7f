"""The rules by which a candidate may replace the champion: pure functions of what the Evaluators measured."""

import hashlib
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from components.evaluation_result import EvaluationResult
from components.release.statistics import (
    bootstrap_lower_bound,
    mcnemar_exact,
    min_photos_to_exclude,
    newcombe_lower_bound,
    sign_test,
    wilson_interval,
)
from serving.names import counted

SIGNIFICANCE = 0.05
# With fewer test photos that only the candidate has right no sign test is significant.
_LEAST_WINS = math.ceil(math.log2(1 / SIGNIFICANCE))


@dataclass(frozen=True)
class Rules:
    """Thresholds; see `gate` in the settings."""

    min_accuracy: float
    min_test_photos: int
    above_majority: bool
    policy: str
    margin: float
    min_slice: int
    max_slice_drop: float


@dataclass
class Decision:
    """Whether the candidate is blessed, and each reason in words.

    Attributes:
        outcome: "blessed", "refused" or "nothing_new".
        majority: the candidate against always answering the largest breed; None without a test photo.
        comparison: numbers of the paired comparison with the champion; None where there is none.
        not_compared: why there is no comparison, in words; None where there is one.
        slices: a row for each breed of the comparison.
    """

    outcome: str = "blessed"
    majority: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    not_compared: str | None = None
    slices: list[dict[str, Any]] = field(default_factory=list)
    _reasons: list[tuple[str, str]] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """What decided, for people: all that stops the candidate, or else all that speaks for it; and the facts."""
        left_out = "for" if self.outcome == "refused" else "against"
        return [reason for kind, reason in self._reasons if kind != left_out]

    def note(self, reason: str) -> None:
        """Adds a reason that speaks for the candidate."""
        self._reasons.append(("for", reason))

    def refuse(self, reason: str) -> None:
        """Adds a reason that stops the candidate."""
        self.outcome = "refused"
        self._reasons.append(("against", reason))

    def explain(self, fact: str) -> None:
        """Adds a fact that stays, whatever the decision is."""
        self._reasons.append(("either", fact))

    def leave_uncompared(self, why: str) -> None:
        """Notes why the candidate is not compared with the champion."""
        self.not_compared = why
        self.explain(why)


def decide(
    rules: Rules,
    candidate: list[dict[str, Any]],
    champion: list[dict[str, Any]],
    candidate_breeds: list[str],
    champion_info: dict[str, Any] | None,
    train_photos: dict[str, int],
) -> Decision:
    """Judges the candidate's outcomes on test against the rules, and photo by photo against the champion's.

    Args:
        rules: thresholds.
        candidate: outcomes of the Evaluator, a row a photo.
        champion: likewise; empty when there is nothing to compare with.
        candidate_breeds: the names the candidate knows.
        champion_info: champion.json; None when nothing is in service.
        train_photos: breed -> number of its photos in train.
    """
    decision = Decision(majority=_against_majority(candidate, train_photos))
    if champion_info and not champion_info["unreadable"] and champion_info["is_candidate"]:
        decision.outcome = "nothing_new"
        decision.leave_uncompared(
            f"the candidate has the data, code, weights and settings of version {champion_info['version']}, "
            "which is in service"
        )
        return decision
    if len(candidate) < rules.min_test_photos:
        decision.refuse(
            f"{counted(len(candidate), 'test photo')} {'is' if len(candidate) == 1 else 'are'} too few to judge by, "
            f"gate.min_test_photos={rules.min_test_photos}: "
            "add photos or give split.test a larger share"
        )
    if not candidate:
        decision.not_compared = "there is no test photo"
        return decision
    _judge_alone(decision, rules, candidate)
    if rules.above_majority:
        _judge_majority(decision)
    comparable = _comparable(decision, rules, candidate, candidate_breeds, champion_info)
    if comparable:
        _compare(decision, rules, comparable, champion, champion_info["version"])
    return decision


def by_breed(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the accuracy hides where breeds differ in size.

    Args:
        outcomes: of the Evaluator, at least one.

    Returns:
        balanced_accuracy: the mean of the accuracies of the breeds; never_recognised: breed -> number of its photos,
        for each breed of which none was right.
    """
    right = {breed: [row["correct"] for row in outcomes if row["breed"] == breed] for breed in _breeds(outcomes)}
    return {
        "balanced_accuracy": sum(sum(found) / len(found) for found in right.values()) / len(right),
        "never_recognised": {breed: len(found) for breed, found in right.items() if not any(found)},
    }


def _breeds(outcomes: list[dict[str, Any]]) -> list[str]:
    return sorted({row["breed"] for row in outcomes})


def _judge_alone(decision: Decision, rules: Rules, candidate: list[dict[str, Any]]) -> None:
    """The candidate by itself."""
    right, found = sum(row["correct"] for row in candidate), by_breed(candidate)
    accuracy = right / len(candidate)
    low, high = wilson_interval(right, len(candidate))
    measured = (
        f"{accuracy:.3f} on {counted(len(candidate), 'test photo')} (95 % interval {low:.3f} to {high:.3f}; "
        f"balanced accuracy {found['balanced_accuracy']:.3f})"
    )
    if accuracy < rules.min_accuracy:
        decision.refuse(f"accuracy {measured} is below the least allowed, gate.min_accuracy={rules.min_accuracy:g}")
    else:
        decision.note(f"accuracy {measured} reaches gate.min_accuracy={rules.min_accuracy:g}")
    if found["never_recognised"]:
        breeds = ", ".join(f"{breed} (0 of {photos})" for breed, photos in found["never_recognised"].items())
        decision.explain(f"never recognised on test: {breeds}")


def _against_majority(candidate: list[dict[str, Any]], train_photos: dict[str, int]) -> dict[str, Any] | None:
    """Photo by photo against a model that always answers the largest breed of train; of equals, the largest of test."""
    if not candidate:
        return None
    on_test = Counter(row["breed"] for row in candidate)
    breed = max(sorted(train_photos), key=lambda name: (train_photos[name], on_test[name]))
    won = sum(row["correct"] and row["breed"] != breed for row in candidate)
    lost = sum(not row["correct"] and row["breed"] == breed for row in candidate)
    return {
        "breed": breed,
        "photos": len(candidate),
        "photos_of_breed": on_test[breed],
        "accuracy": on_test[breed] / len(candidate),
        "only_candidate_right": won,
        "only_majority_right": lost,
        "sign_test_p": sign_test(won, lost),
    }


def _judge_majority(decision: Decision) -> None:
    found, allowed = decision.majority, f"gate.above_majority asks for less than {SIGNIFICANCE:g}"
    baseline = (
        f"always answering {found['breed']!r}, the largest breed of train: that is right on {found['accuracy']:.3f} of "
        f"the test photos; {counted(found['only_candidate_right'], 'photo')} won, {found['only_majority_right']} lost "
        f"of {found['photos']}, one-sided exact McNemar p = {found['sign_test_p']:.4f}"
    )
    others = found["photos"] - found["photos_of_breed"]
    if found["sign_test_p"] < SIGNIFICANCE:
        decision.note(f"better than {baseline}")
    elif others < _LEAST_WINS:
        decision.refuse(
            f"cannot be shown to be better than {baseline}, {allowed}. Only {others} of the test photos are of other "
            f"breeds, and it takes {_LEAST_WINS}: add photos of them or give split.test a larger share"
        )
    else:
        decision.refuse(f"not shown to be better than {baseline}, {allowed}")


def _comparable(
    decision: Decision,
    rules: Rules,
    candidate: list[dict[str, Any]],
    candidate_breeds: list[str],
    champion_info: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """The photos on which the candidate is compared with the champion; where there are none, the decision says why."""
    if champion_info is None:
        decision.leave_uncompared("no model is in service to compare with")
        return []
    name = f"version {champion_info['version']} in service"
    if champion_info["unreadable"]:
        decision.leave_uncompared(
            f"{name} cannot be read ({champion_info['unreadable']}): only the absolute thresholds count"
        )
        return []
    if set(champion_info["breeds"]) != set(candidate_breeds):
        changed = _changed_breeds(champion_info["breeds"], candidate_breeds)
        decision.leave_uncompared(f"the breeds are not those of {name}: {changed}; only the absolute thresholds count")
        return []
    learned = set(champion_info["learned"])
    unseen = [row for row in candidate if row["content_hash"] not in learned]
    known = f"{name} learned from {len(candidate) - len(unseen)} of the {len(candidate)} test photos"
    if len(unseen) < min(rules.min_test_photos, len(candidate)):
        decision.leave_uncompared(
            f"{known}: {len(unseen)} remain, too few for a comparison by gate.min_test_photos={rules.min_test_photos}; "
            "only the absolute thresholds count"
        )
        return []
    if len(unseen) < len(candidate):
        decision.explain(f"{known}: the comparison is on the {len(unseen)} that remain")
    return unseen


def _changed_breeds(before: list[str], now: list[str]) -> str:
    parts = (("new", set(now) - set(before)), ("gone", set(before) - set(now)))
    return ", ".join(f"{word} {', '.join(sorted(breeds))}" for word, breeds in parts if breeds)


def _compare(decision: Decision, rules: Rules, candidate: list, champion: list, version: int) -> None:
    """Photo by photo: both models saw the same ones, so only those count on which they differ."""
    theirs = {row["content_hash"]: row["correct"] for row in champion}
    differences = [int(row["correct"]) - int(theirs[row["content_hash"]]) for row in candidate]
    gained, lost = differences.count(1), differences.count(-1)
    photos, difference = len(differences), sum(differences) / len(differences)
    lower, p_value = bootstrap_lower_bound(differences), mcnemar_exact(gained, lost)
    # The bootstrap knows only what happened: that few photos lost none says little of how many others would be lost.
    most_lost = wilson_interval(lost, photos)[1]
    decision.comparison = {
        "policy": rules.policy,
        "photos": photos,
        "champion_accuracy": sum(theirs[row["content_hash"]] for row in candidate) / photos,
        "only_candidate_right": gained,
        "only_champion_right": lost,
        "accuracy_difference": difference,
        "accuracy_difference_lower95": lower,
        "accuracy_difference_score_lower95": newcombe_lower_bound(gained, lost, photos),
        "lost_share_upper95": most_lost,
        "mcnemar_p": p_value,
    }
    passed, words = {
        "not_worse": (
            lower >= -rules.margin,
            f"difference {difference:+.3f}, its interval begins at {lower:+.3f}, allowed from {-rules.margin:+.3f}",
        ),
        "better": (gained > lost, f"difference {difference:+.3f}, asked for more than 0"),
        "significantly_better": (
            gained > lost and p_value < SIGNIFICANCE,
            f"difference {difference:+.3f}, exact McNemar p = {p_value:.4f}, asked for less than {SIGNIFICANCE:g}",
        ),
    }[rules.policy]
    counts = f"{counted(gained, 'photo')} won, {lost} lost of {photos}, at most {most_lost:.1%} at 95 % confidence"
    sentence = f"gate.policy={rules.policy} against version {version} ({counts}): {words}"
    if passed:
        decision.note(f"meets {sentence}")
        if doubt := _doubt(rules, decision.comparison):
            decision.note(doubt)
    else:
        decision.refuse(f"fails {sentence}")
    for breed in _breeds(candidate):
        _judge_slice(decision, rules, breed, [row for row in candidate if row["breed"] == breed], theirs)


def _doubt(rules: Rules, comparison: dict[str, Any]) -> str | None:
    """What the photos cannot show though the policy is met, in words."""
    photos, lower = comparison["photos"], comparison["accuracy_difference_score_lower95"]
    if rules.policy == "not_worse" and lower < -rules.margin:
        needed = min_photos_to_exclude(rules.margin)
        more = f"; it takes at least {needed} photos" if photos < needed < math.inf else ""
        return (
            f"{counted(photos, 'photo')} cannot exclude a loss larger than gate.margin={rules.margin:g}: a bootstrap "
            "interval is too narrow where the models differ on few photos; a score interval (Newcombe) begins at "
            f"{lower:+.3f}{more}"
        )
    if rules.policy == "better" and comparison["mcnemar_p"] >= SIGNIFICANCE:
        return (
            f"{counted(photos, 'photo')} cannot show that it is better: two equally good models differ at least as "
            f"much with probability {comparison['mcnemar_p']:.4f} (exact McNemar)"
        )
    return None


def _judge_slice(decision: Decision, rules: Rules, breed: str, rows: list, theirs: dict[str, bool]) -> None:
    ours = sum(row["correct"] for row in rows) / len(rows)
    champions = sum(theirs[row["content_hash"]] for row in rows) / len(rows)
    enforced = len(rows) >= rules.min_slice
    decision.slices.append(
        {"breed": breed, "photos": len(rows), "candidate": ours, "champion": champions, "enforced": enforced}
    )
    if enforced and champions - ours > rules.max_slice_drop + 1e-9:  # a share has rounding errors
        decision.refuse(
            f"breed {breed!r} falls from {champions:.3f} to {ours:.3f} on {counted(len(rows), 'photo')}, more than "
            f"gate.max_slice_drop={rules.max_slice_drop:g}"
        )


def judge(
    rules: Rules,
    record: dict[str, Any],
    measured: EvaluationResult,
    champion_info: dict[str, Any] | None,
    champion_measured: EvaluationResult,
    ingest: dict[str, Any],
) -> dict[str, Any]:
    """gate.json: the decision with all that it rests on.

    Args:
        rules: thresholds.
        record: of the candidate, see `serving.model_files`.
        measured: of the candidate on test.
        champion_info: champion.json.
        champion_measured: of the champion on the same photos.
        ingest: report.json of ImageExampleGen.
    """
    train_photos = {breed: counts["train"] for breed, counts in ingest["breeds"].items()}
    decision = decide(
        rules, measured.outcomes, champion_measured.outcomes, record["breeds"], champion_info, train_photos
    )
    photos = sorted(row["content_hash"] for row in measured.outcomes)
    return {
        "blessed": decision.outcome == "blessed",
        "outcome": decision.outcome,
        "reasons": decision.reasons,
        "rules": asdict(rules),
        "measured_on": {
            "split": "test",
            "photos": len(photos),
            "digest": hashlib.sha256("\n".join(photos).encode()).hexdigest(),
        },
        "candidate": {
            "backbone": record["backbone"]["architecture"],
            "weights": record["backbone"]["weights"],
            "model_digest": record["model_digest"],
            **_scores(measured),
        },
        "champion": champion_info
        and {
            **{key: value for key, value in champion_info.items() if key != "learned"},
            **_scores(champion_measured),
        },
        "majority": decision.majority,
        "comparison": decision.comparison,
        "not_compared": decision.not_compared,
        "slices": decision.slices,
    }


def _scores(measured: EvaluationResult) -> dict[str, Any]:
    if measured.metrics is None:
        return {}
    overall = measured.metrics["overall"]
    return {
        "test_accuracy": overall["accuracy"],
        "test_accuracy_ci95": overall["accuracy_ci95"],
        "test_loss": overall["loss"],
        "test_photos": overall["photos"],
        **by_breed(measured.outcomes),
    }
