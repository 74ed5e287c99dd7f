"""The report page as a browser shows it, including unusual runs and names."""

import math
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from components.reporting.report_page import report_page

BREEDS = ["Birman", "Sphynx"]
NAME = 'Maine <u title="x">Coon</u> & "co\'s" onerror='
THUMBNAIL = "data:image/jpeg;base64,/9j/4AAQ"
TRAIN, EVAL, TEST = 70, 21, 20


def scores(accuracy: float, photos: int) -> dict:
    return {
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1],
        "loss": 0.812,
        "photos": photos,
        "top3_accuracy": 0.97,
    }


def candidate(backbone: str, accuracy: float) -> dict:
    return {
        "backbone": backbone,
        "weights": "imagenet",
        "eval_accuracy": accuracy,
        "eval_accuracy_ci95": [accuracy - 0.15, accuracy + 0.12],
        "eval_loss": 1.234,
        "top3_accuracy": 0.951,
        "oof_accuracy": accuracy - 0.04,
        "oof_accuracy_ci95": [accuracy - 0.1, accuracy + 0.05],
        "oof_loss": 1.018,
        "difference_to_winner": accuracy - 0.714,
        "difference_ci95": [accuracy - 0.754, accuracy - 0.694],
        "backbones": [backbone],
        "multiply_adds": 3_858_000_000,
        "embedding_seconds": 31.5,
        "tuning_seconds": 12.6,
        "tuning_trials": 4,
        "training_seconds": 7.7,
        "parameters": 23_690_468,
        "saved_model_bytes": 96_231_992,
        "latency_ms_p50": 21.9,
    }


def trial(number: int, score: float) -> dict:
    """A network; every other one is on all blocks."""
    return {
        "trial_id": f"{number:02}",
        "kind": "network",
        "blocks": ("last", "all")[number % 2],
        "score": score,
        "units": (0, 50)[number % 2],
        "dropout": 0.5,
        "learning_rate": 10 ** (-4 + number % 3),
        "weight_decay": 0.01,
        "tuner/epochs": 2 + number % 3,
        "tuner/initial_epoch": 0,
        "tuner/seconds": 0.3,
    }


def solved_trial(blocks: str, l2: float, score: float) -> dict:
    return {
        "trial_id": f"{blocks}-{l2:g}",
        "kind": "logistic_regression",
        "blocks": blocks,
        "l2": l2,
        "score": score,
        "tuner/seconds": 0.2,
    }


def training(epochs: int) -> dict:
    curve = [1 / (epoch + 1) for epoch in range(epochs)]
    history = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), curve)
    return {"epochs": epochs, "best_epoch": epochs, "history": history}


def documents() -> dict:
    """A run of two backbones whose winner, resnet50, is pushed as version 2 while version 1 is stable."""
    model = {"backbone": "resnet50", "test_accuracy": 0.8, "test_accuracy_ci95": [0.6, 0.9], "test_loss": 0.8}
    model |= {"test_photos": TEST, "balanced_accuracy": 0.815, "never_recognised": {}}
    return {
        "run_id": "run-7",
        "verdict": "Passed: pushed as version 2.",
        "comparison": {
            "breeds": list(BREEDS),
            "candidates": [candidate("resnet50", 0.714), candidate("xception", 0.571)],
            "winner": "resnet50",
            "reason": "most accurate out of fold: 0.674, ahead of xception with 0.531",
            "price": 0,
            "price_unit": "parameters",
            "split_sizes": {"train": TRAIN, "eval": EVAL, "test": TEST},
        },
        "gate": {
            "outcome": "blessed",
            "reasons": ["accuracy 0.800 on 20 test photos meets gate.min_accuracy=0.4"],
            "rules": {
                "min_accuracy": 0.4,
                "min_test_photos": 12,
                "above_majority": True,
                "policy": "not_worse",
                "margin": 0.03,
                "min_slice": 10,
                "max_slice_drop": 0.2,
            },
            "measured_on": {"split": "test", "photos": TEST, "digest": "t" * 64},
            "candidate": {**model, "weights": "imagenet", "model_digest": "e" * 64},
            "champion": {**model, "version": 1, "unreadable": None, "is_candidate": False, "breeds": list(BREEDS)},
            "majority": {
                "breed": "Birman",
                "photos": TEST,
                "photos_of_breed": 12,
                "accuracy": 0.6,
                "only_candidate_right": 7,
                "only_majority_right": 3,
                "sign_test_p": 0.1719,
            },
            "not_compared": None,
            "comparison": {
                "policy": "not_worse",
                "photos": TEST,
                "champion_accuracy": 0.75,
                "only_candidate_right": 3,
                "only_champion_right": 2,
                "accuracy_difference": 0.05,
                "accuracy_difference_ci95": [-0.187, 0.281],
                "mcnemar_p": 0.6875,
                "mcnemar_worse_p": 0.8125,
                "log_likelihood_difference": 0.123,
                "log_likelihood_worse_p": 0.9312,
            },
            "power": {
                "photos": TEST,
                "disagreement": 0.262,
                "measured": True,
                "basis": "estimated from 5 of 20",
                "loss": 0.03,
                "max_photos": 20_000,
                "policies": [
                    {"policy": "no_harm", "rejects_equal": 0.382, "passes_worse": 0.519, "photos_needed": 1900},
                    {"policy": "better", "rejects_equal": 0.591, "passes_worse": 0.342, "photos_needed": None},
                ],
                "summary": "on 20 photos, gate.policy=not_worse rejects",
            },
            "slices": [
                {"breed": "Birman", "photos": 12, "candidate": 0.75, "champion": 0.9, "enforced": True},
                {"breed": "Sphynx", "photos": 8, "candidate": 0.88, "champion": 0.5, "enforced": False},
            ],
            "pushed_version": 2,
            "serving": {"stable": 1},
            "run": "run-7",
        },
        "ingest": {
            "breeds": {breed: {"train": 35, "eval": 10, "test": 10} for breed in BREEDS},
            "files": TRAIN + EVAL + TEST,
            "photos": TRAIN + EVAL + TEST,
            "captured": {},
            "left_out": [],
        },
        "excluded": {},
        "data_verdict": {"passed": True, "warnings": []},
        "training": {"resnet50": training(6), "xception": training(9)},
        "trials": {
            "resnet50": [trial(number, 0.7 + 0.01 * number) for number in range(5)],
            "xception": [trial(number, 0.9 - 0.01 * number) for number in range(7)],
        },
        "objective": "val_loss",
        "test": {
            "overall": scores(0.8, TEST),
            "breeds": {"Birman": scores(0.75, 12), "Sphynx": scores(0.88, 8)},
            "confusion": {"breeds": list(BREEDS), "rows": [[9, 3], [1, 7]]},
            "calibration": {
                "bins": [
                    {"photos": 6, "confidence": 0.55, "accuracy": 0.5},
                    {"photos": 14, "confidence": 0.86, "accuracy": 0.93},
                ],
                "expected_calibration_error": 0.0644,
            },
        },
        "confident_errors": [
            {
                "path": "Birman/7.jpg",
                "breed": "Birman",
                "predicted": "Sphynx",
                "confidence": 0.91,
                "probability": 0.06,
                "image": THUMBNAIL,
            }
        ],
        "model_record": {
            "backbone": {"architecture": "resnet50", "weights_digest": "w" * 64},
            "model_digest": "e" * 64,
            "data_digest": "d" * 64,
            "code_digest": "c" * 64,
        },
        "random_weights": False,
        "settings": {"data": "photos of cats", "workdir": "my runs", "seed": 41},
        "logdir": "my runs/artifacts",
        "commit": "abc123",
        "versions": {"tensorflow": "2.21.0"},
    }


class Page(HTMLParser):
    """A report as a browser parses it.

    Attributes:
        text: All text, with single spaces.
        tags: Number of elements of each tag.
        attributes: (name, value) pairs of all elements.
        rows: Cell texts of each table row.
        collapsed: Text of each <details> element that is not open.
        marks_by_group: Number of <use> marks and clipped paths in each group of the charts, by the group's id.
    """

    def __init__(self, documents: dict):
        super().__init__()
        self.source = report_page(documents)
        self.text, self.tags, self.attributes, self.rows, self.collapsed = "", Counter(), [], [], []
        self.marks_by_group: dict[str, Counter] = {}
        self._groups, self._open_tags = [], set()
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags[tag] += 1
        self.attributes += attrs
        self._open_tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "details" and "open" not in attributes:
            self.collapsed.append("")
        elif tag == "g":
            self._groups.append(attributes.get("id"))
        if tag == "use" or (tag == "path" and "clip-path" in attributes):
            for group in self._groups:
                self.marks_by_group.setdefault(group, Counter())[tag] += 1
        self.text += " "

    def handle_endtag(self, tag):
        self._open_tags.discard(tag)
        if tag == "g":
            self._groups.pop()

    def handle_data(self, data):
        if "style" in self._open_tags:
            return
        self.text += data
        if self._open_tags & {"td", "th"}:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()
        if "details" in self._open_tags and self.collapsed:
            self.collapsed[-1] += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]

    def marks(self, group: str) -> int:
        counts = self.marks_by_group.get(group, Counter())
        return counts["use"] or counts["path"]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(documents())


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        ("Models", ["2 candidates: resnet50, xception", "Winner: resnet50, most accurate out of fold: 0.674"]),
        ("Models", ["compared the winner with the champion, version 1 (resnet50)"]),
        ("Data", ["111 of the 111 files in photos of cats", "Train: 70 photos", "Eval: 21 photos", "Test: 20 photos"]),
        ("Data", ["and the thresholds of prediction sets. Train and eval together: choice"]),
        (
            "Rules",
            ["Winner: the candidate with the highest out-of-fold accuracy on train + eval; ties go to the one with"],
        ),
        ("Rules", ["accuracy of at least 0.4 on at least 12 photos"]),
        (
            "Rules",
            [
                "not worse",
                "begins at -0.03 or above",
                "no significant accuracy drop of more than 0.2 from the champion",
            ],
        ),
        (
            "Results",
            ["(mean over breeds): 0.815. Majority-class baseline (always Birman", "largest breed in train): 0.600"],
        ),
        ("Rules", ["12 photos; significantly better than the majority-class baseline; not worse"]),
        ("Results", ["out of fold: accuracy 0.674, 95% CI 0.614 to 0.764 (91 photos of train and eval"]),
        ("Results", ["0.714, 95% CI 0.564 to 0.834 (21 photos; optimistic", "0.700 to 0.900 (20 photos)"]),
        (
            "Results",
            ["difference from champion version 1: +0.050, 95% CI -0.187 to +0.281; wins 3, losses 2, photos 20."],
        ),
        ("Registry", ["Stable: version 1.", "This run pushed version 2. To make it the stable version:"]),
        ("Registry", ["catbreeds promote 2 --workdir 'my runs'"]),
    ],
)
def test_page_starts_with_a_summary(page, section, texts):
    summary = page.text[page.text.index("Summary Models") : page.text.index("Candidates Tuning")]
    for text in texts:
        assert text in summary[summary.index(f" {section} ") :]


@pytest.mark.parametrize(
    "row",
    [
        ["resnet50", "", "0.674", "0.61 to 0.76", "1.018", "", "winner", "0.714", "0.56 to 0.83"],
        ["xception", "", "0.531", "0.47 to 0.62", "1.018", "", "-14.3 (-18.3 to -12.3)", "0.571", "0.42 to 0.69"],
        ["resnet50", "1.234", "0.951", "31.5", "12.6", "7.7", "23.7", "3.9", "96", "22"],
        ["all breeds", "20", "", "0.80", "0.70 to 0.90", "0.97", "0.81", "0.75", "+0.05", ""],
        ["Birman", "12", "", "0.75", "0.65 to 0.85", "0.97", "0.81", "0.90", "-0.15", "yes"],
        ["Sphynx", "8", "", "0.88", "0.78 to 0.98", "0.97", "0.81", "0.50", "+0.38", "too few photos"],
        ["Birman", "9", "3"],
        ["Birman", "35", "10", "10"],
        ["0.730", "network", "all blocks", "0.0001", "50", "0.5", "0.01", "2", "0.3"],
        ["min_test_photos", "at least 12 test photos", "20"],
        [
            "above_majority",
            "better than the majority-class baseline (always Birman, the largest breed in train): one-sided exact "
            "McNemar p below 0.05",
            "baseline accuracy 0.600; wins 7, losses 3, photos 20; p = 0.1719",
        ],
        ["version 1 (resnet50)", "", "0.800", "0.600 to 0.900", "0.800", "20"],
        ["digest: model", "e" * 64],
        ["digest: data", "d" * 64],
        ["digest: code", "c" * 64],
        ["digest: weights", "w" * 64],
        ["digest: test photos", "t" * 64],
        ["commit", "abc123"],
    ],
)
def test_tables_contain_the_numbers(page, row):
    assert row in page.rows


def test_gate_table_shows_the_paired_comparison_and_the_largest_drop(page):
    results = {row[0]: row[2] for row in page.rows if row and row[0].startswith(("policy", "min_slice"))}
    assert results["policy, margin"] == (
        "accuracy difference +0.050, 95% CI -0.187 to +0.281; wins 3, losses 2, photos 20; exact McNemar p = 0.6875, "
        "one-sided p = 0.8125 (candidate worse). Log-likelihood of the true breed (informative, not a rule): mean "
        "difference +0.123, one-sided paired t-test p = 0.9312 (candidate worse)"
    )
    assert "1 of 2 breeds have enough photos; largest drop 0.150 (Birman)" in results["min_slice, max_slice_drop"]


def test_page_shows_the_power_of_each_policy(page):
    assert "Power of the comparison with the champion on 20 photos, gate.policy=not_worse rejects" in page.text
    assert ["no_harm", "38.2%", "51.9%", "1,900"] in page.rows
    assert ["better", "59.1%", "34.2%", "over 20,000"] in page.rows
    assert "is right on 26.2% of them" in page.text


def test_page_counts_the_captured_photos_by_reason_and_split():
    changed = documents()
    changed["ingest"]["captured"] = {
        "random": {"train": 5, "eval": 2, "test": 1},
        "uncertain": {"train": 7, "eval": 0, "test": 0},
    }
    text = Page(changed).text
    assert "From the random share: 5 in train, 2 in eval, 1 in test." in text
    assert "Captured because the model was uncertain: 7, all in train" in text


def test_page_shows_the_power_of_a_gate_json_without_the_largest_number_of_photos():
    changed = documents()
    del changed["gate"]["power"]["max_photos"]
    assert ["better", "59.1%", "34.2%", "not enough with any number that was tried"] in Page(changed).rows


def test_a_decision_of_an_earlier_version_is_shown_with_its_own_numbers():
    earlier = documents()
    del earlier["gate"]["power"]
    comparison = earlier["gate"]["comparison"]
    for name in ("accuracy_difference_ci95", "mcnemar_worse_p", "log_likelihood_difference", "log_likelihood_worse_p"):
        del comparison[name]
    comparison |= {"accuracy_difference_lower95": -0.021, "accuracy_difference_score_lower95": -0.187}
    comparison |= {"lost_share_upper95": 0.301}
    page = Page(earlier)
    difference = (
        "+0.050, 95% CI lower bound -0.021 (bootstrap) or -0.187 (score interval), loss rate at most 30.1%; wins 3, "
        "losses 2, photos 20"
    )
    assert f"Accuracy difference from champion version 1: {difference}." in page.text
    results = {row[0]: row[2] for row in page.rows if row and row[0].startswith("policy")}
    assert results["policy, margin"] == f"accuracy difference {difference}; exact McNemar p = 0.6875"
    assert "Power of the comparison" not in page.text


def test_page_shows_confusions_errors_calibration_and_settings(page):
    for text in (
        "confusions: 3 of 12 Birman predicted as Sphynx 1 of 8 Sphynx predicted as Birman Rows",
        "predicted Sphynx: 91%",
        "Birman/7.jpg",
        "calibration error: 0.064",
        "git checkout abc123",
        "seed: 41",
        "tensorflow 2.21.0",
    ):
        assert text in page.text


def test_page_loads_no_resources_runs_no_scripts_and_has_unique_ids(page):
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not {"script", "link", "iframe", "object"} & page.tags.keys()
    assert "url(" not in page.source.replace("url(#", "")
    assert page.values("src") == [THUMBNAIL]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = page.values("href") + page.values("xlink:href")
    assert {reference[0] for reference in references} == {"#"}
    assert {reference[1:] for reference in references} <= set(ids)


def test_each_chart_has_a_distinct_label(page):
    assert page.tags["svg"] == 5
    assert page.values("role") == ["img"] * 5
    labels = [label for label in page.values("aria-label") if label != "Sections"]
    assert len(set(labels)) == 5


def test_equal_documents_render_equal_pages(page):
    assert report_page(documents()) == page.source


def marks_of_blocks(page: Page, name: str, parameter: str) -> int:
    """Number of trials in a chart that are neither outliers nor the best one."""
    return sum(page.marks(f"tuning-{name}-{blocks}-{parameter}") for blocks in ("last", "all"))


def test_charts_contain_one_mark_per_trial_epoch_and_bin(page):
    for name, trials, epochs in (("resnet50", 5, 6), ("xception", 7, 9)):
        for parameter in ("learning_rate", "units", "dropout", "weight_decay"):
            assert marks_of_blocks(page, name, parameter) == trials - 1
            assert page.marks(f"tuning-{name}-best-{parameter}") == 1
        for curve in ("loss", "val_loss", "accuracy", "val_accuracy"):
            assert page.marks_by_group[f"learning-{name}-curve-{curve}"]["use"] == epochs
    assert page.marks_by_group["calibration-bins"]["use"] == 2


def test_special_characters_in_names_and_paths_are_escaped():
    changed = documents()
    rename = {"Birman": NAME}
    changed["comparison"]["breeds"][0] = changed["test"]["confusion"]["breeds"][0] = NAME
    for part in (changed["ingest"], changed["test"]):
        part["breeds"] = {rename.get(breed, breed): row for breed, row in part["breeds"].items()}
    changed["gate"]["slices"][0]["breed"] = NAME
    changed["confident_errors"][0] |= {
        "breed": NAME,
        "predicted": NAME,
        "path": f"{NAME}/{NAME}.jpg",
    }
    changed["excluded"] = {"damaged": [{"path": NAME, "kind": "damaged", "reason": NAME}]}
    changed["ingest"]["left_out"] = changed["excluded"]["damaged"]
    changed["data_verdict"]["warnings"] = [f"eval has no photo of {NAME}"]
    page = Page(changed)
    assert "u" not in page.tags
    assert "x" not in page.values("title")
    assert [row[0] for row in page.rows if row].count(NAME) == 3
    for text in (
        f"3 of 12 {NAME} predicted as Sphynx",
        f"{NAME}/{NAME}.jpg",
        f"{NAME}: {NAME}",
        f"no photo of {NAME}",
        f"({NAME})",
    ):
        assert text in page.text
    assert f"{NAME}, predicted {NAME}" in page.values("alt")


def not_compared(changed: dict, champion: dict | None, reason: str) -> None:
    changed["gate"].update(champion=champion, comparison=None, not_compared=reason, slices=[])


def first_push(changed):
    not_compared(changed, None, "no champion to compare with: no version has the label stable")
    changed["gate"] |= {"pushed_version": 1, "serving": {"stable": 1}}


def rejected_without_a_stable_version(changed):
    not_compared(changed, None, "no champion to compare with: no version has the label stable")
    changed["verdict"] = "Rejected: nothing pushed."
    changed["gate"] |= {"outcome": "refused", "pushed_version": None, "serving": {}}


def unreadable_champion(changed):
    champion = {"version": 1, "unreadable": "/models/1: OSError: gone"}
    not_compared(changed, champion, "champion version 1 cannot be loaded (/models/1: OSError: gone)")


def champion_with_other_breeds(changed):
    not_compared(
        changed, changed["gate"]["champion"], "the breeds differ from those of champion version 1 (added: Manx)"
    )


def nothing_new(changed):
    not_compared(
        changed,
        changed["gate"]["champion"] | {"is_candidate": True},
        "the candidate has the same data as champion version 1",
    )
    changed["gate"] |= {"outcome": "nothing_new", "pushed_version": None}


def significantly_better(changed):
    changed["gate"]["rules"]["policy"] = "significantly_better"


def comparison_of_an_earlier_version(changed):
    """Remove what earlier versions of this project did not write to comparison.json."""
    comparison = changed["comparison"]
    del comparison["price"], comparison["price_unit"]
    comparison |= {"rule": "smaller_within_interval", "reason": "smallest network"}
    for row in comparison["candidates"]:
        for key in [key for key in row if key.startswith(("oof_", "difference_"))] + ["backbones", "multiply_adds"]:
            del row[key]


def price_of_parameters(changed):
    changed["comparison"]["price"] = 0.5
    changed["comparison"]["candidates"][1]["parameters"] *= 4


def ensemble_wins(changed):
    comparison = changed["comparison"]
    comparison["candidates"].append(candidate("ensemble", 0.714) | {"backbones": ["resnet50", "xception"]})
    comparison["winner"] = "ensemble"
    for key in ("training", "trials"):
        changed[key]["ensemble"] = changed[key]["resnet50"]


def one_solved_head(changed):
    changed["training"]["resnet50"] = {"epochs": 0, "best_epoch": 0, "iterations": 31, "history": None}


def only_solved_heads(changed):
    penalties = [("last", 0.01, 0.8), ("last", 0.1, 0.7), ("all", 0.01, 0.6), ("all", 0.1, 0.5)]
    for name in changed["trials"]:
        changed["trials"][name] = [solved_trial(*values) for values in penalties]
    one_solved_head(changed)
    changed["training"]["xception"] = changed["training"]["resnet50"]


def other_label(changed):
    changed["gate"]["serving"] = {"stable": 2, "canary": 3}


def one_backbone(changed):
    changed["comparison"]["candidates"].pop()
    del changed["training"]["xception"], changed["trials"]["xception"]


def one_trial_one_epoch(changed):
    changed["trials"]["resnet50"] = [trial(0, 0.5)]
    changed["training"]["resnet50"] = training(1)


def all_trials_diverged(changed):
    changed["trials"]["resnet50"] = [trial(number, math.nan) for number in range(3)]
    changed["comparison"]["candidates"][0]["eval_loss"] = math.inf


def no_finite_loss(changed):
    changed["training"]["resnet50"]["history"] |= {"loss": [math.nan] * 6, "val_loss": [None] * 6}


def accuracy_as_objective(changed):
    changed["objective"] = "val_accuracy"


def no_errors(changed):
    changed["confident_errors"] = []


def breed_without_test_photos(changed):
    del changed["test"]["breeds"]["Sphynx"]
    changed["gate"]["slices"].pop()


def champion_trained_on_all_test_photos_of_a_breed(changed):
    changed["gate"]["slices"].pop()
    changed["gate"]["comparison"]["photos"] = 12


def champion_trained_on_nearly_all_test_photos(changed):
    not_compared(
        changed,
        changed["gate"]["champion"],
        "champion version 1 was trained on 17 of the 20 test photos, which leaves 3 photos",
    )


def majority_rule_disabled(changed):
    changed["gate"]["rules"]["above_majority"] = False


def breed_without_a_correct_prediction(changed):
    changed["gate"]["candidate"]["never_recognised"] = {"Sphynx": 8}


def no_breed_with_enough_photos(changed):
    changed["gate"]["slices"][0]["enforced"] = False


def no_checkout(changed):
    changed["commit"] = None


def uncommitted_changes(changed):
    changed["commit"] = "abc123-dirty"


def random_weights_and_a_warning(changed):
    changed["random_weights"] = True
    changed["data_verdict"]["warnings"] = ["breeds drift"]


@pytest.mark.parametrize(
    ("change", "present", "absent"),
    [
        (
            first_push,
            [
                "did not compare the winner with a champion (no champion to compare with",
                "Stable: version 1, pushed by this run",
            ],
            ["This run pushed", "promote"],
        ),
        (first_push, ["not compared: no champion to compare with"], ["version 1 (resnet50)"]),
        (
            rejected_without_a_stable_version,
            ["Gate: resnet50 was rejected", "No stable version: no model"],
            [],
        ),
        (unreadable_champion, ["champion version 1 cannot be loaded (/models/1: OSError: gone)"], ["wins 3"]),
        (
            champion_with_other_breeds,
            ["not compared: the breeds differ from those of champion version 1", "version 1 (resnet50)"],
            ["wins 3"],
        ),
        (nothing_new, ["Gate: resnet50 is not new", "not compared: the candidate has the same data"], ["promote"]),
        (significantly_better, ["McNemar p below 0.05"], ["at least -0.03"]),
        (
            comparison_of_an_earlier_version,
            ["Winner: the backbone with the fewest parameters among those", "early stopping and backbone selection."],
            ["of-fold", "of fold", "Multiply-adds", "Price of size", "to winner"],
        ),
        (
            price_of_parameters,
            [
                "Price of size: 0.5 points for each doubling of the parameters",
                "after a deduction of 0.5 points for each doubling of the number of parameters; ties go to",
            ],
            [],
        ),
        (
            ensemble_wins,
            ["3 candidates: resnet50, xception, ensemble (resnet50 + xception)", "Ensemble: resnet50 + xception."],
            [],
        ),
        (
            only_solved_heads,
            [
                "Solved as a logistic regression in 31 iterations.",
                "Best of 4 trials: val_loss 0.500, logistic regression on all blocks, L2 penalty 0.1.",
            ],
            ["Learning curves", "Gray is train"],
        ),
        (
            one_solved_head,
            ["Solved as a logistic regression in 31 iterations.", "Learning curves", "Gray is train"],
            [],
        ),
        (other_label, ["Stable: version 2, pushed by this run", "Label canary: version 3"], ["This run pushed"]),
        (one_backbone, ["One candidate: resnet50"], ["xception on"]),
        (
            one_trial_one_epoch,
            [
                "Best of 1 trials: val_loss 0.500, network on the last block, no hidden units, dropout 0.5, learning "
                "rate 0.0001, weight decay 0.01.",
                "1 epoch; the head weights are from epoch 1",
            ],
            [],
        ),
        (
            all_trials_diverged,
            ["No trial has a finite score", "3 of 3 trials diverged", "not finite"],
            [" nan", " inf "],
        ),
        (no_finite_loss, ["no finite value"], []),
        (accuracy_as_objective, ["Best of 5 trials: val_accuracy 0.740", "higher is better"], ["lower is better"]),
        (no_errors, ["None: all test photos were classified correctly"], ["predicted Sphynx: 91%"]),
        (
            champion_trained_on_all_test_photos_of_a_breed,
            ["was trained on all of these photos", "refer to the 12 photos that version 1 was not trained on"],
            [],
        ),
        (
            champion_trained_on_nearly_all_test_photos,
            ["not compared: champion version 1 was trained on 17 of the 20 test photos, which leaves 3 photos"],
            ["other breeds", "wins 3"],
        ),
        (majority_rule_disabled, ["none: the rule is disabled", "in train): 0.600"], ["better than the majority"]),
        (breed_without_a_correct_prediction, ["correct prediction on test: Sphynx (0 of 8)."], []),
        (breed_without_test_photos, ["Sphynx 0 no test photos"], []),
        (no_breed_with_enough_photos, ["no breed has 10 compared photos"], ["largest drop"]),
        (no_checkout, ["The code did not run from a Git checkout"], ["git checkout", "commit None"]),
        (uncommitted_changes, ["The checkout had uncommitted changes", "git checkout abc123 catbreeds run"], []),
        (random_weights_and_a_warning, ["These backbones have random weights", "breeds drift"], []),
    ],
)
def test_page_describes_unusual_runs(change, present, absent):
    changed = documents()
    change(changed)
    text = Page(changed).text
    for part in present:
        assert part in text
    for part in absent:
        assert part not in text


def test_diverged_trials_and_outliers_stay_visible_and_do_not_flatten_the_other_trials():
    changed = documents()
    changed["trials"]["resnet50"] += [trial(5, math.nan), trial(6, math.inf), trial(7, 900.0)]
    page = Page(changed)
    assert marks_of_blocks(page, "resnet50", "units") == 4
    assert page.marks("tuning-resnet50-outlier-units") == 3
    assert page.marks("tuning-resnet50-best-units") == 1
    assert "2 of 8 trials diverged" in page.text


def test_logistic_regressions_have_a_panel_and_lines_beside_the_networks():
    changed = documents()
    solved = [solved_trial(blocks, l2, 0.6 + l2) for blocks in ("last", "all") for l2 in (0.3, 0.1, 0.2)]
    changed["trials"]["resnet50"] += [*solved, solved_trial("all", 0.01, 0.3), solved_trial("last", 1.0, 99.0)]
    page = Page(changed)
    marks = [page.marks(f"tuning-resnet50-{group}-l2") for group in ("last", "all", "outlier", "best")]
    assert marks == [3, 3, 1, 1]
    # The lines are sorted by penalty and include the best trial, but no outlier.
    for blocks, points in (("last", 3), ("all", 4)):
        line = re.search(rf'id="tuning-resnet50-line-{blocks}">\s*<path d="([^"]*)"', page.source)[1]
        positions = [float(x) for x in re.findall(r"[ML] ([\d.]+)", line)]
        assert len(positions) == points
        assert positions == sorted(positions)
    assert marks_of_blocks(page, "resnet50", "units") == 5
    assert page.marks("tuning-resnet50-best-units") == 0
    assert page.marks("tuning-xception-best-l2") == 0
    assert "L2 penalty 0.01." in page.text
    assert ["0.800", "logistic regression", "last block", "0.2", "", "", "", "", "", "0.2"] in page.rows
    assert ["0.730", "network", "all blocks", "", "0.0001", "50", "0.5", "0.01", "2", "0.3"] in page.rows


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_networks_stay_on_the_scale_if_the_logistic_regressions_are_much_better(objective):
    solved, network = ((0.2, 0.9), (0.21, 0.89)), (0.6, 0.5)
    column = 0 if objective == "val_loss" else 1
    changed = documents()
    changed["objective"] = objective
    trials = [solved_trial("last", 0.1 + number, solved[number % 2][column]) for number in range(6)]
    changed["trials"]["resnet50"] = trials + [trial(number, network[column]) for number in range(4)]
    page = Page(changed)
    assert page.marks("tuning-resnet50-outlier-units") == 0
    assert marks_of_blocks(page, "resnet50", "units") == 4


def test_difference_to_the_winner_is_drawn_on_a_scale_that_contains_all_intervals():
    changed = documents()
    winner, other = changed["comparison"]["candidates"]
    other |= {"difference_to_winner": -0.02, "difference_ci95": [-0.04, 0.005]}
    winner["difference_ci95"] = [-0.1, 0.1]  # not drawn
    page = Page(changed)
    assert "(drawn: \N{MINUS SIGN}4 to 4)" in page.text
    # -4 points are the left edge, 0 is the middle.
    assert "left: 0.0%; right: 43.8%" in page.values("style")
    assert "left: 25.0%" in page.values("style")


def test_price_is_shown_as_the_points_that_it_deducts():
    changed = documents()
    price_of_parameters(changed)
    rows = [row for row in Page(changed).rows if row and row[0] in ("resnet50", "xception")]
    assert [row[-3] for row in rows if len(row) == 11] == ["0.0", "1.0"]


def test_comparison_of_an_earlier_version_has_its_numbers_and_no_empty_columns():
    changed = documents()
    comparison_of_an_earlier_version(changed)
    rows = Page(changed).rows
    assert ["resnet50", "", "0.714", "0.56 to 0.83"] in rows
    assert ["resnet50", "1.234", "0.951", "31.5", "12.6", "7.7", "23.7", "96", "22"] in rows


def test_epochs_without_a_finite_loss_leave_a_gap():
    changed = documents()
    changed["training"]["resnet50"]["history"]["loss"] = [3.0, math.nan, math.inf, 2.0, 1.0, 0.5]
    assert Page(changed).marks_by_group["learning-resnet50-curve-loss"]["use"] == 4


def test_page_of_a_large_run_is_below_800_kb_and_collapses_its_lists():
    changed = documents()
    breeds = [f"A breed with a long name, number {number}" for number in range(20)]
    changed["comparison"]["breeds"] = breeds
    changed["ingest"]["breeds"] = {breed: {"train": 70, "eval": 15, "test": 15} for breed in breeds}
    changed["test"]["breeds"] = {breed: scores(0.8, 15) for breed in breeds}
    changed["test"]["confusion"] = {"breeds": breeds, "rows": [[1] * 20 for _ in breeds]}
    changed["gate"]["slices"] = []
    changed["trials"] = {name: [trial(number, 1.0 + number) for number in range(90)] for name in changed["trials"]}
    changed["excluded"] = {
        kind: [{"path": f"{kind}/{number}.jpg", "kind": kind, "reason": "why"} for number in range(150)]
        for kind in ("damaged", "near duplicate")
    }
    changed["ingest"]["left_out"] = [row for rows in changed["excluded"].values() for row in rows]
    page = Page(changed)
    assert len(page.source) < 800_000
    assert "Excluded: 300 of 111 files." in page.text
    damaged = next(text for text in page.collapsed if text.startswith("damaged: 150"))
    assert damaged.count("why") == 150
    assert page.text.count("damaged/149.jpg") == 1
    matrix = [row for row in page.rows if len(row) == 21]
    assert matrix[0][1:] == breeds
    assert [row[0] for row in matrix[1:]] == breeds
