"""The rules by which a candidate may replace the champion: pure functions of what the Evaluators measured."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from components.measured import Measured
from components.statistics import mcnemar_exact, paired_lower_bound, wilson_interval

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Rules:
    """Thresholds; see `gate` in the settings."""

    min_accuracy: float
    min_test_photos: int
    policy: str
    margin: float
    min_slice: int
    max_slice_drop: float


@dataclass
class Decision:
    """Whether the candidate is blessed, and each reason in words.

    Attributes:
        outcome: "blessed", "refused" or "nothing_new".
        reasons: what decided, for people.
        comparison: numbers of the paired comparison; None without a comparable champion.
        slices: a row for each breed of the comparison.
    """

    outcome: str = "blessed"
    reasons: list[str] = field(default_factory=list)
    comparison: dict[str, Any] | None = None
    slices: list[dict[str, Any]] = field(default_factory=list)

    def note(self, reason: str) -> None:
        """Adds a reason that speaks for the candidate; it gives way to those that stop it."""
        if self.outcome != "refused":
            self.reasons.append(reason)

    def refuse(self, reason: str) -> None:
        """Adds a reason that stops the candidate; the ones that speak for it give way."""
        if self.outcome != "refused":
            self.outcome, self.reasons = "refused", []
        self.reasons.append(reason)


def decide(
    rules: Rules,
    candidate: list[dict[str, Any]],
    champion: list[dict[str, Any]],
    candidate_breeds: list[str],
    champion_info: dict[str, Any] | None,
) -> Decision:
    """Judges the candidate's outcomes on test against the rules, and photo by photo against the champion's.

    Args:
        rules: thresholds.
        candidate: outcomes of the Evaluator, a row a photo.
        champion: likewise; empty when there is nothing to compare with.
        candidate_breeds: the names the candidate knows.
        champion_info: champion.json; None when nothing is in service.
    """
    decision = Decision()
    unreadable = champion_info and champion_info["unreadable"]
    if champion_info and not unreadable and champion_info["is_candidate"]:
        decision.outcome = "nothing_new"
        decision.reasons.append(
            f"the candidate has the data, code, weights and settings of version {champion_info['version']}, "
            "which is in service"
        )
        return decision
    if len(candidate) < rules.min_test_photos:
        decision.refuse(
            f"{len(candidate)} test photos are too few to judge by, gate.min_test_photos={rules.min_test_photos}: "
            "add photos or give split.test a larger share"
        )
        if not candidate:
            return decision
    right = sum(row["correct"] for row in candidate)
    accuracy = right / len(candidate)
    low, high = wilson_interval(right, len(candidate))
    measured = f"{accuracy:.3f} on {len(candidate)} test photos (95 % interval {low:.3f} to {high:.3f})"
    if accuracy < rules.min_accuracy:
        decision.refuse(f"accuracy {measured} is below the least allowed, gate.min_accuracy={rules.min_accuracy:g}")
    else:
        decision.note(f"accuracy {measured} reaches gate.min_accuracy={rules.min_accuracy:g}")
    if champion_info is None:
        decision.reasons.append("no model is in service: there is nothing to compare with")
    elif unreadable:
        decision.reasons.append(
            f"version {champion_info['version']} in service cannot be read ({unreadable}): only the absolute "
            "thresholds count"
        )
    elif set(champion_info["breeds"]) != set(candidate_breeds):
        decision.reasons.append(
            f"the breeds are not those of version {champion_info['version']} in service: "
            f"{_changed_breeds(champion_info['breeds'], candidate_breeds)}; only the absolute thresholds count"
        )
    else:
        learned = set(champion_info["learned"])
        unseen = [row for row in candidate if row["content_hash"] not in learned]
        enough = len(unseen) >= min(rules.min_test_photos, len(candidate))
        if len(unseen) < len(candidate):
            decision.reasons.append(
                f"{len(candidate) - len(unseen)} of the test photos are ones that version {champion_info['version']} "
                f"in service learned from; the {len(unseen)} others "
                + ("are compared on" if enough else "are too few to compare on: only the absolute thresholds count")
            )
        if enough:
            _compare(decision, rules, unseen, champion, champion_info["version"])
    return decision


def _changed_breeds(before: list[str], now: list[str]) -> str:
    parts = (("new", set(now) - set(before)), ("gone", set(before) - set(now)))
    return ", ".join(f"{word} {', '.join(sorted(breeds))}" for word, breeds in parts if breeds)


def _compare(decision: Decision, rules: Rules, candidate: list, champion: list, version: int) -> None:
    """Photo by photo: both models saw the same ones, so only those count on which they differ."""
    theirs = {row["content_hash"]: row["correct"] for row in champion}
    differences = [int(row["correct"]) - int(theirs[row["content_hash"]]) for row in candidate]
    gained, lost = differences.count(1), differences.count(-1)
    difference = sum(differences) / len(differences)
    lower, p_value = paired_lower_bound(differences), mcnemar_exact(gained, lost)
    # The bootstrap knows only what happened: that few photos lost none says little of how many others would be lost.
    most_lost = wilson_interval(lost, len(differences))[1]
    decision.comparison = {
        "policy": rules.policy,
        "photos": len(differences),
        "only_candidate_right": gained,
        "only_champion_right": lost,
        "accuracy_difference": difference,
        "accuracy_difference_lower95": lower,
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
    counts = f"{gained} photos won, {lost} lost of {len(differences)}, at most {most_lost:.1%} at 95 % confidence"
    sentence = f"gate.policy={rules.policy} against version {version} ({counts}): {words}"
    if passed:
        decision.note(f"meets {sentence}")
    else:
        decision.refuse(f"fails {sentence}")
    for breed in sorted({row["breed"] for row in candidate}):
        _judge_slice(decision, rules, breed, [row for row in candidate if row["breed"] == breed], theirs)


def _judge_slice(decision: Decision, rules: Rules, breed: str, rows: list, theirs: dict[str, bool]) -> None:
    ours = sum(row["correct"] for row in rows) / len(rows)
    champions = sum(theirs[row["content_hash"]] for row in rows) / len(rows)
    enforced = len(rows) >= rules.min_slice
    decision.slices.append(
        {"breed": breed, "photos": len(rows), "candidate": ours, "champion": champions, "enforced": enforced}
    )
    if enforced and champions - ours > rules.max_slice_drop + 1e-9:  # a share has rounding errors
        decision.refuse(
            f"breed {breed!r} falls from {champions:.3f} to {ours:.3f} on {len(rows)} photos, more than "
            f"gate.max_slice_drop={rules.max_slice_drop:g}"
        )


def judge(
    rules: Rules,
    record: dict[str, Any],
    measured: Measured,
    champion_info: dict[str, Any] | None,
    champion_measured: Measured,
) -> dict[str, Any]:
    """gate.json: the decision with all that it rests on.

    Args:
        rules: thresholds.
        record: of the candidate, see `serving.model_record`.
        measured: of the candidate on test.
        champion_info: champion.json.
        champion_measured: of the champion on the same photos.
    """
    decision = decide(rules, measured.outcomes, champion_measured.outcomes, record["breeds"], champion_info)
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
            "recipe_digest": record["recipe_digest"],
            **_scores(measured.metrics),
        },
        "champion": champion_info
        and {
            **{key: value for key, value in champion_info.items() if key != "learned"},
            **_scores(champion_measured.metrics),
        },
        "comparison": decision.comparison,
        "slices": decision.slices,
    }


def _scores(metrics: dict | None) -> dict:
    if metrics is None:
        return {}
    overall = metrics["overall"]
    return {
        "test_accuracy": overall["accuracy"],
        "test_accuracy_ci95": overall["accuracy_ci95"],
        "test_loss": overall["loss"],
        "test_photos": overall["photos"],
    }
