"""The report of a run as its reader sees it, and what must not break it."""

import math
from collections import Counter
from html.parser import HTMLParser

import pytest

from components.reporting.report_page import report_page

BREEDS = ["Birman", "Sphynx"]
ODD = 'Maine <u title="x">Coon</u> & "co\'s" onerror='
DOT = "data:image/jpeg;base64,/9j/4AAQ"
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
        "embedding_seconds": 31.5,
        "tuning_seconds": 12.6,
        "tuning_trials": 4,
        "training_seconds": 7.7,
        "parameters": 23_690_468,
        "saved_model_bytes": 96_231_992,
        "latency_ms_p50": 21.9,
    }


def trial(number: int, score: float) -> dict:
    return {
        "trial_id": f"{number:02}",
        "score": score,
        "units": (0, 50)[number % 2],
        "dropout": 0.5,
        "learning_rate": 10 ** (-4 + number % 3),
        "weight_decay": 0.01,
        "tuner/epochs": 2 + number % 3,
        "tuner/initial_epoch": 0,
        "tuner/seconds": 0.3,
    }


def training(epochs: int) -> dict:
    curve = [1 / (epoch + 1) for epoch in range(epochs)]
    history = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), curve)
    return {"epochs": epochs, "best_epoch": epochs, "history": history}


def documents() -> dict:
    """A run of two backbones whose winner, resnet50, is pushed as version 2 beside version 1, which serves."""
    model = {"backbone": "resnet50", "test_accuracy": 0.8, "test_accuracy_ci95": [0.6, 0.9], "test_loss": 0.8}
    model |= {"test_photos": TEST, "balanced_accuracy": 0.815, "never_recognised": {}}
    return {
        "run_id": "run-7",
        "verdict": "Admitted: pushed as version 2.",
        "comparison": {
            "breeds": list(BREEDS),
            "candidates": [candidate("resnet50", 0.714), candidate("xception", 0.571)],
            "winner": "resnet50",
            "reason": "most accurate on eval: 0.714, ahead of xception with 0.571",
            "rule": "most_accurate",
            "split_sizes": {"train": TRAIN, "eval": EVAL, "test": TEST},
        },
        "gate": {
            "outcome": "blessed",
            "reasons": ["accuracy 0.800 on 20 test photos reaches gate.min_accuracy=0.4"],
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
                "accuracy_difference_lower95": -0.021,
                "accuracy_difference_score_lower95": -0.187,
                "lost_share_upper95": 0.301,
                "mcnemar_p": 0.6875,
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
            "left_out": [],
        },
        "left_out": {},
        "data": {"passed": True, "warnings": []},
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
        "worst": [
            {
                "path": "Birman/7.jpg",
                "breed": "Birman",
                "predicted": "Sphynx",
                "confidence": 0.91,
                "probability": 0.06,
                "image": DOT,
            }
        ],
        "record": {
            "backbone": {"architecture": "resnet50", "weights_digest": "w" * 64},
            "model_digest": "e" * 64,
            "data_digest": "d" * 64,
            "code_digest": "c" * 64,
        },
        "random": False,
        "settings": "data: photos of cats\nworkdir: my runs\nseed: 41\n",
        "commit": "abc123",
        "versions": {"tensorflow": "2.21.0"},
    }


class Page(HTMLParser):
    """A report as a browser sees it.

    Attributes:
        text: all text, with single spaces.
        tags: how often each element occurs.
        attributes: (name, value) of all elements.
        rows: texts of the cells of each table row.
        folded: text of each <details> that is not open.
        drawn: id of a group in a chart -> what it draws: marks by <use>, or paths that are clipped to the panel.
    """

    def __init__(self, documents: dict):
        super().__init__()
        self.source = report_page(documents)
        self.text, self.tags, self.attributes, self.rows, self.folded = "", Counter(), [], [], []
        self.drawn: dict[str, Counter] = {}
        self._groups, self._inside = [], set()
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags[tag] += 1
        self.attributes += attrs
        self._inside.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "details" and "open" not in attributes:
            self.folded.append("")
        elif tag == "g":
            self._groups.append(attributes.get("id"))
        if tag == "use" or (tag == "path" and "clip-path" in attributes):
            for group in self._groups:
                self.drawn.setdefault(group, Counter())[tag] += 1
        self.text += " "

    def handle_endtag(self, tag):
        self._inside.discard(tag)
        if tag == "g":
            self._groups.pop()

    def handle_data(self, data):
        if "style" in self._inside:
            return
        self.text += data
        if self._inside & {"td", "th"}:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()
        if "details" in self._inside and self.folded:
            self.folded[-1] += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]

    def marks(self, group: str) -> int:
        found = self.drawn.get(group, Counter())
        return found["use"] or found["path"]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(documents())


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("What was compared?", ["2 backbones: resnet50, xception", "Winner: resnet50, most accurate on eval: 0.714"]),
        ("What was compared?", ["compared with version 1 (resnet50), which was in service"]),
        ("On which photos?", ["111 of the 111 files in photos of cats", "70 photos", "21 (eval)", "20 (test)"]),
        ("By which rule?", ["most accurate on eval; of equals", "accuracy 0.4 on at least 12 test photos"]),
        ("By which rule?", ["no worse", "begins at -0.03 or above", "no breed with at least 10 test photos may"]),
        (
            "How sure are we?",
            ["mean of the breeds: 0.815. Always answering Birman", "largest breed of train, would give 0.600"],
        ),
        ("By which rule?", ["12 test photos, is better than always answering the largest breed and is no worse"]),
        ("How sure are we?", ["0.714, 95 % interval 0.564 to 0.834 (21 photos, which", "0.700 to 0.900 (20 photos)"]),
        (
            "How sure are we?",
            ["version 1: +0.050, 95 % interval from -0.021; 3 photos won, 2 lost of 20; at most 30.1 % lost"],
        ),
        ("What is served now?", ["Version 1 (label stable)", "Version 2, pushed by this run, waits"]),
        ("What is served now?", ["catbreeds promote 2 --workdir 'my runs' puts it in service"]),
    ],
)
def test_the_page_begins_with_the_answers_to_a_reviewers_questions(page, question, answers):
    glance = page.text[page.text.index("At a glance") : page.text.index("Candidates Tuning")]
    for answer in answers:
        assert answer in glance[glance.index(question) :]


@pytest.mark.parametrize(
    "row",
    [
        ["resnet50", "", "0.714", "0.56 to 0.83", "1.234", "0.951", "31.5", "12.6", "7.7", "23.7", "96", "22"],
        ["all breeds", "20", "", "0.80", "0.70 to 0.90", "0.97", "0.81", "0.75", "+0.05", ""],
        ["Birman", "12", "", "0.75", "0.65 to 0.85", "0.97", "0.81", "0.90", "-0.15", "yes"],
        ["Sphynx", "8", "", "0.88", "0.78 to 0.98", "0.97", "0.81", "0.50", "+0.38", "too few"],
        ["Birman", "9", "3"],
        ["Birman", "35", "10", "10"],
        ["0.730", "0.0001", "50", "0.5", "0.01", "2", "0.3"],
        ["min_test_photos", "at least 12 test photos", "20"],
        [
            "above_majority",
            "better than always answering Birman, the largest breed of train: one-sided exact McNemar p below 0.05",
            "always answering it is right on 0.600 of the test photos; of 20 photos 7 won, 3 lost; p 0.1719",
        ],
        ["version 1 (resnet50)", "", "0.800", "0.600 to 0.900", "0.800", "20"],
        ["digest: recipe", "e" * 64],
        ["digest: data", "d" * 64],
        ["digest: code", "c" * 64],
        ["digest: weights", "w" * 64],
        ["digest: test photos", "t" * 64],
        ["commit", "abc123"],
    ],
)
def test_the_tables_have_the_numbers(page, row):
    assert row in page.rows


def test_the_gates_paired_comparison_and_its_worst_breed_are_told(page):
    measured = {row[0]: row[2] for row in page.rows if row and row[0].startswith(("policy", "min_slice"))}
    assert (
        "+0.050, 95 % interval from -0.021 (bootstrap) or -0.187 (score interval); of 20 photos 3 won, 2 lost; exact"
        in (measured["policy, margin"])
    )
    assert "1 of 2 breeds have as many; the largest loss is 0.150 (Birman)" in measured["min_slice, max_slice_drop"]


def test_mistakes_photos_calibration_and_settings_are_told(page):
    for text in (
        "mistakes: 3 of 12 Birman called Sphynx 1 of 8 Sphynx called Birman A row",
        "called Sphynx, 91",
        "Birman/7.jpg",
        "off by 0.064 on average",
        "git checkout abc123",
        "seed: 41",
        "tensorflow 2.21.0",
    ):
        assert text in page.text


def test_nothing_is_fetched_or_run_and_each_id_is_there_once(page):
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not {"script", "link", "iframe", "object"} & page.tags.keys()
    assert "url(" not in page.source.replace("url(#", "")
    assert page.values("src") == [DOT]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = page.values("href") + page.values("xlink:href")
    assert {reference[0] for reference in references} == {"#"}
    assert {reference[1:] for reference in references} <= set(ids)


def test_each_chart_says_what_it_shows(page):
    assert page.tags["svg"] == 5
    assert page.values("role") == ["img"] * 5
    labels = [label for label in page.values("aria-label") if label != "Sections"]
    assert len(set(labels)) == 5


def test_the_same_run_gives_the_same_page(page):
    assert report_page(documents()) == page.source


def test_charts_have_a_mark_for_each_trial_epoch_and_bin(page):
    for name, trials, epochs in (("resnet50", 5, 6), ("xception", 7, 9)):
        for parameter in ("learning_rate", "units", "dropout", "weight_decay"):
            assert page.marks(f"tuning-{name}-near-{parameter}") == trials - 1
            assert page.marks(f"tuning-{name}-best-{parameter}") == 1
        for curve in ("loss", "val_loss", "accuracy", "val_accuracy"):
            assert page.drawn[f"learning-{name}-curve-{curve}"]["use"] == epochs
    assert page.drawn["calibration-bins"]["use"] == 2


def test_names_and_paths_are_text_whatever_they_hold():
    found = documents()
    rename = {"Birman": ODD}
    found["comparison"]["breeds"][0] = found["test"]["confusion"]["breeds"][0] = ODD
    for part in (found["ingest"], found["test"]):
        part["breeds"] = {rename.get(breed, breed): row for breed, row in part["breeds"].items()}
    found["gate"]["slices"][0]["breed"] = ODD
    found["worst"][0] |= {"breed": ODD, "predicted": ODD, "path": f"{ODD}/{ODD}.jpg"}
    found["left_out"] = {"damaged": [{"path": ODD, "kind": "damaged", "reason": ODD}]}
    found["ingest"]["left_out"] = found["left_out"]["damaged"]
    found["data"]["warnings"] = [f"eval has no photo of {ODD}"]
    page = Page(found)
    assert "u" not in page.tags
    assert "x" not in page.values("title")
    assert [row[0] for row in page.rows if row].count(ODD) == 3
    for text in (f"3 of 12 {ODD} called Sphynx", f"{ODD}/{ODD}.jpg", f"{ODD}: {ODD}", f"no photo of {ODD}", f"({ODD})"):
        assert text in page.text
    assert f"{ODD}, called {ODD}" in page.values("alt")


def not_compared(found: dict, champion: dict | None, why: str) -> None:
    found["gate"].update(champion=champion, comparison=None, not_compared=why, slices=[])


def first_push(found):
    not_compared(found, None, "no model is in service to compare with")
    found["gate"] |= {"pushed_version": 1, "serving": {"stable": 1}}


def refused_with_nothing_in_service(found):
    not_compared(found, None, "no model is in service to compare with")
    found["verdict"] = "Refused: no model was pushed, what is in service stays."
    found["gate"] |= {"outcome": "refused", "pushed_version": None, "serving": {}}


def unreadable_champion(found):
    champion = {"version": 1, "unreadable": "/models/1: OSError: gone"}
    not_compared(found, champion, "version 1 in service cannot be read (/models/1: OSError: gone)")


def champion_of_other_breeds(found):
    not_compared(found, found["gate"]["champion"], "the breeds are not those of version 1 in service: new Manx")


def nothing_new(found):
    not_compared(found, found["gate"]["champion"] | {"is_candidate": True}, "the candidate is version 1, in service")
    found["gate"] |= {"outcome": "nothing_new", "pushed_version": None}


def significantly_better(found):
    found["gate"]["rules"]["policy"] = "significantly_better"
    found["comparison"]["rule"] = "smaller_within_interval"


def other_label(found):
    found["gate"]["serving"] = {"stable": 2, "canary": 3}


def one_backbone(found):
    found["comparison"]["candidates"].pop()
    del found["training"]["xception"], found["trials"]["xception"]


def one_trial_one_epoch(found):
    found["trials"]["resnet50"] = [trial(0, 0.5)]
    found["training"]["resnet50"] = training(1)


def all_trials_diverged(found):
    found["trials"]["resnet50"] = [trial(number, math.nan) for number in range(3)]
    found["comparison"]["candidates"][0]["eval_loss"] = math.inf


def no_finite_loss(found):
    found["training"]["resnet50"]["history"] |= {"loss": [math.nan] * 6, "val_loss": [None] * 6}


def accuracy_as_objective(found):
    found["objective"] = "val_accuracy"


def nothing_wrong(found):
    found["worst"] = []


def no_test_photo_of_a_breed(found):
    del found["test"]["breeds"]["Sphynx"]
    found["gate"]["slices"].pop()


def champion_learned_all_test_photos_of_a_breed(found):
    found["gate"]["slices"].pop()
    found["gate"]["comparison"]["photos"] = 12


def champion_learned_nearly_all_test_photos(found):
    not_compared(
        found, found["gate"]["champion"], "version 1 in service learned from 17 of the 20 test photos: 3 remain"
    )


def majority_rule_switched_off(found):
    found["gate"]["rules"]["above_majority"] = False


def a_breed_was_never_recognised(found):
    found["gate"]["candidate"]["never_recognised"] = {"Sphynx": 8}


def no_breed_large_enough(found):
    found["gate"]["slices"][0]["enforced"] = False


def no_checkout(found):
    found["commit"] = None


def changed_checkout(found):
    found["commit"] = "abc123-dirty"


def random_weights_and_a_warning(found):
    found["random"] = True
    found["data"]["warnings"] = ["breeds drift"]


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        (
            first_push,
            [
                "There was no comparison: no model is in service",
                "Version 1 (label stable), pushed by this run",
            ],
            ["waits", "promote"],
        ),
        (first_push, ["not compared: no model is in service"], ["version 1 (resnet50)"]),
        (refused_with_nothing_in_service, ["the gate refused resnet50", "Nothing: no model was pushed so far"], []),
        (unreadable_champion, ["version 1 in service cannot be read (/models/1: OSError: gone)"], ["3 won, 2"]),
        (
            champion_of_other_breeds,
            ["not compared: the breeds are not those of version 1", "version 1 (resnet50)"],
            ["3 won, 2"],
        ),
        (nothing_new, ["nothing is new about resnet50", "not compared: the candidate is version 1"], ["promote"]),
        (significantly_better, ["McNemar p below 0.05", "the one with the fewest parameters"], ["above -0.03"]),
        (other_label, ["Version 2 (label stable), pushed by this run", "Version 3 has the label canary"], ["waits"]),
        (one_backbone, ["One backbone: resnet50"], ["xception on"]),
        (one_trial_one_epoch, ["Best of 1: val_loss 0.500", "1 epoch; the head of epoch 1"], []),
        (
            all_trials_diverged,
            ["No trial has a finite score", "3 of 3 trials diverged", "not finite"],
            [" nan", " inf "],
        ),
        (no_finite_loss, ["no finite value"], []),
        (accuracy_as_objective, ["Best of 5: val_accuracy 0.740", "more is better"], ["less is better"]),
        (nothing_wrong, ["None: every test photo was recognised"], ["Most surely wrong on test called"]),
        (
            champion_learned_all_test_photos_of_a_breed,
            ["learned all of these photos", "are of the 12 photos that version 1 did not learn from"],
            [],
        ),
        (
            champion_learned_nearly_all_test_photos,
            ["not compared: version 1 in service learned from 17 of the 20 test photos: 3 remain"],
            ["other breeds", "won, 2"],
        ),
        (majority_rule_switched_off, ["the rule is switched off", "would give 0.600"], ["better than always"]),
        (a_breed_was_never_recognised, ["Never recognised on test: Sphynx (0 of 8)."], []),
        (no_test_photo_of_a_breed, ["Sphynx 0 no test photo: nothing is measured"], []),
        (no_breed_large_enough, ["no breed has 10 such photos"], ["largest loss"]),
        (no_checkout, ["The code did not come from a Git checkout"], ["git checkout", "commit None"]),
        (changed_checkout, ["Files of the checkout differed", "git checkout abc123 catbreeds run"], []),
        (random_weights_and_a_warning, ["The backbones have random weights", "breeds drift"], []),
    ],
)
def test_unusual_runs_are_told_in_the_right_words(change, said, unsaid):
    found = documents()
    change(found)
    text = Page(found).text
    for words in said:
        assert words in text
    for words in unsaid:
        assert words not in text


def test_diverged_and_hopeless_trials_stay_visible_and_do_not_flatten_the_others():
    found = documents()
    found["trials"]["resnet50"] += [trial(5, math.nan), trial(6, math.inf), trial(7, 900.0)]
    page = Page(found)
    assert page.marks("tuning-resnet50-near-units") == 4
    assert page.marks("tuning-resnet50-far-units") == 3
    assert page.marks("tuning-resnet50-best-units") == 1
    assert "2 of 8 trials diverged" in page.text


def test_epochs_without_a_finite_loss_leave_a_gap():
    found = documents()
    found["training"]["resnet50"]["history"]["loss"] = [3.0, math.nan, math.inf, 2.0, 1.0, 0.5]
    assert Page(found).drawn["learning-resnet50-curve-loss"]["use"] == 4


def test_a_large_run_stays_small_and_folds_its_lists():
    found = documents()
    breeds = [f"A breed with a long name, number {number}" for number in range(20)]
    found["comparison"]["breeds"] = breeds
    found["ingest"]["breeds"] = {breed: {"train": 70, "eval": 15, "test": 15} for breed in breeds}
    found["test"]["breeds"] = {breed: scores(0.8, 15) for breed in breeds}
    found["test"]["confusion"] = {"breeds": breeds, "rows": [[1] * 20 for _ in breeds]}
    found["gate"]["slices"] = []
    found["trials"] = {name: [trial(number, 1.0 + number) for number in range(90)] for name in found["trials"]}
    found["left_out"] = {
        kind: [{"path": f"{kind}/{number}.jpg", "kind": kind, "reason": "why"} for number in range(150)]
        for kind in ("damaged", "near duplicate")
    }
    found["ingest"]["left_out"] = [row for rows in found["left_out"].values() for row in rows]
    page = Page(found)
    assert len(page.source) < 800_000
    assert "Left out: 300 of 111 files." in page.text
    damaged = next(text for text in page.folded if text.startswith("damaged: 150"))
    assert damaged.count("why") == 150
    assert page.text.count("damaged/149.jpg") == 1
    matrix = [row for row in page.rows if len(row) == 21]
    assert matrix[0][1:] == breeds
    assert [row[0] for row in matrix[1:]] == breeds
