"""The page, the summary, the terminal and the model card show each decision of the gate with its reasons."""

import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation, ModelRun, TunerResults
from typer.testing import CliRunner

from components.artifacts import (
    HTML,
    Comparison,
    DataVerdict,
    GateDecision,
    IngestReport,
    Markdown,
    Metrics,
    PushRecord,
)
from components.release.gate_policies import POLICIES
from components.release.model_card import Statements, card_page, model_card
from components.release.model_gate import ModelGate
from components.reporting import charts, report_data
from components.reporting.report_data import ArtifactUris, load_documents
from components.reporting.run_report import Executor
from components.statistical_tests import wilson_interval
from pipeline.cli import app
from pipeline.results import report
from pipeline.settings import load, to_json
from serving.names import counted

BREEDS = ["Birman", 'Maine <u title="x">Coon</u> & [bold]co', ":cat: | Manx"]
PHOTOS = 9  # maximum number of test photos of each breed
HASHES = [f"{number}-{photo}" for number in range(len(BREEDS)) for photo in range(PHOTOS)]
RECORD = {
    "backbone": {"architecture": "resnet50", "weights": "random", "weights_digest": "w" * 64, "image_size": 32},
    "breeds": BREEDS,
    "parameters": 23_000_000,
    "hyperparameters": {"kind": "logistic_regression", "blocks": "all", "l2": 0.03},
    **{f"{name}_digest": name[0] * 64 for name in ("model", "data", "code")},
}
CANDIDATE = {
    **{"backbone": "lite2", "weights": "random", "eval_accuracy": 0.7, "eval_accuracy_ci95": [0.5, 0.8]},
    **{"eval_loss": 1.2, "top3_accuracy": 0.9, "embedding_seconds": 3.0, "tuning_seconds": 1.0, "tuning_trials": 1},
    **{"oof_accuracy": 0.65, "oof_accuracy_ci95": [0.6, 0.7], "oof_loss": 1.1, "multiply_adds": 3_900_000_000},
    **{"difference_to_winner": 0.0, "difference_ci95": [-0.1, 0.1], "backbones": ["lite2"]},
    **{"training_seconds": 1.0, "parameters": 23_000_000, "saved_model_bytes": 96_000_000, "latency_ms_p50": 21.0},
}
# As written before there were logistic regressions.
TRIAL = {"trial_id": "00", "score": 0.7, "units": 0, "dropout": 0.5, "learning_rate": 0.01, "weight_decay": 0.0}
TRIAL |= {"tuner/epochs": 2, "tuner/initial_epoch": 0, "tuner/seconds": 0.3}
LENIENT = {"min_accuracy": 0.0, "min_test_photos": 1, "above_majority": 0, "policy": "no_harm", "margin": 1.0}
LENIENT |= {"min_slice": 1, "max_slice_drop": 1.0}


def write(folder: Path, name: str, document: object) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


def outcome(content_hash: str, correct: bool) -> dict:
    number = int(content_hash[0])
    return {
        "path": f"{number}/{content_hash}.jpg",
        "content_hash": content_hash,
        "breed": BREEDS[number],
        "predicted": BREEDS[number if correct else (number + 1) % len(BREEDS)],
        "correct": correct,
        "confidence": 0.8,
        "probability": 0.8 if correct else 0.1,
    }


def measurements(rows: list[dict]) -> dict:
    """Contents of metrics.json that the Evaluator writes for these outcomes."""

    def scores(selected: list[dict]) -> dict:
        correct, photos = sum(row["correct"] for row in selected), len(selected)
        interval = list(wilson_interval(correct, photos))
        accuracy = {"accuracy": correct / photos, "accuracy_ci95": interval, "top3_accuracy": 1.0}
        return {**accuracy, "loss": 0.8, "photos": photos}

    matrix = [[sum((r["breed"], r["predicted"]) == (a, b) for r in rows) for b in BREEDS] for a in BREEDS]
    return {
        "overall": scores(rows),
        "breeds": {
            breed: scores([row for row in rows if row["breed"] == breed])
            for breed in sorted({row["breed"] for row in rows})
        },
        "confusion": {"breeds": BREEDS, "rows": matrix},
        "calibration": {
            "bins": [{"photos": len(rows), "confidence": 0.8, "accuracy": 0.5}],
            "expected_calibration_error": 0.3,
        },
    }


@dataclass(frozen=True)
class Case:
    """Inputs of the gate, and whether a blessed model is pushed.

    Attributes:
        candidate: Whether the candidate is correct, by content hash.
        champion: Whether the champion is correct, by content hash.
        info: Contents of champion.json.
        rules: Rules of the gate.
        train: Number of train photos of each breed.
        pushed_before: Whether the registry already has the same model.
    """

    candidate: dict[str, bool]
    champion: dict[str, bool]
    info: dict | None
    rules: dict
    train: list[int]
    pushed_before: bool

    @property
    def comparable(self) -> bool:
        """Whether ChampionModel copies the stable version."""
        info = self.info
        return bool(info) and not info["unreadable"] and not info["is_candidate"] and set(info["breeds"]) == set(BREEDS)


def champions(photos: list[str]) -> st.SearchStrategy[dict | None]:
    readable = {
        "version": 1,
        "unreadable": None,
        "backbone": "xception",
        "model_digest": "o" * 64,
        "tested": photos[:1],
    }
    hashes = st.lists(st.sampled_from(photos), unique=True) | st.just(photos) | st.just(photos[1:]) | st.just([])
    return st.one_of(
        st.none(),
        st.just({"version": 1, "unreadable": "/models/1: ValueError: <damaged>"}),
        st.just({**readable, "is_candidate": True, "breeds": BREEDS, "learned": photos}),
        st.just({**readable, "is_candidate": False, "breeds": [*BREEDS[1:], "Bengal"], "learned": photos}),
        hashes.map(lambda learned: {**readable, "is_candidate": False, "breeds": BREEDS[::-1], "learned": learned}),
        hashes.map(lambda learned: {**readable, "is_candidate": False, "breeds": BREEDS, "learned": learned}),
    )


@st.composite
def cases(draw) -> Case:
    photos = draw(st.lists(st.sampled_from(HASHES), unique=True, min_size=1))
    predictions = st.lists(st.booleans(), min_size=len(photos), max_size=len(photos)) | st.just([True] * len(photos))
    share = st.sampled_from([0.0, 0.02, 0.3, 0.5, 1.0])
    return Case(
        candidate=dict(zip(photos, draw(predictions), strict=True)),
        champion=dict(zip(photos, draw(predictions), strict=True)),
        info=draw(champions(photos)),
        rules={
            "min_accuracy": draw(share),
            "min_test_photos": draw(st.sampled_from([1, 3, 10])),
            "above_majority": draw(st.sampled_from([0, 1])),
            "policy": draw(st.sampled_from(POLICIES)),
            "margin": draw(share),
            "min_slice": draw(st.sampled_from([1, 3, 20])),
            "max_slice_drop": draw(share),
        },
        train=draw(st.lists(st.integers(3, 6), min_size=len(BREEDS), max_size=len(BREEDS))),
        pushed_before=draw(st.booleans()),
    )


class GateRun:
    """Artifacts of the components around the gate, and the outputs that show its decision."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._settings = to_json(load("smoke", options={"data": "photos", "workdir": str(folder / "work")}))
        write(folder, "winner/Format-Serving/assets.extra/catbreeds.json", RECORD)
        write(folder, "verdict/verdict.json", {"passed": True, "warnings": []})
        write(folder, "trials/tuner_results.json", [TRIAL])
        history = {key: [1.0, 0.5] for key in ("loss", "accuracy", "val_loss", "val_accuracy")}
        write(folder, "training/training.json", {"epochs": 2, "best_epoch": 2, "history": history})
        (folder / "serving" / "catbreeds" / "1").mkdir(parents=True)
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40)).save(buffer, "JPEG")
        (folder / "examples" / "Split-test").mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "examples" / "Split-test" / "data_tfrecord")) as writer:
            for content_hash in HASHES:
                example = tf.train.Example()
                for name, value in (("content_hash", content_hash.encode()), ("image_bytes", buffer.getvalue())):
                    example.features.feature[name].bytes_list.value.append(value)
                writer.write(example.SerializeToString())

    def artifact(self, kind: type, name: str):
        artifact = kind()
        artifact.uri = str(self.folder / name)
        return artifact

    def decide(self, case: Case) -> dict:
        """Run ModelGate and return gate.json."""
        counts = dict(zip(BREEDS, case.train, strict=True))
        tested = {breed: sum(key[0] == str(number) for key in case.candidate) for number, breed in enumerate(BREEDS)}
        breeds = {breed: {"train": counts[breed], "eval": 2, "test": tested[breed]} for breed in BREEDS}
        files = sum(map(sum, (row.values() for row in breeds.values())))
        ingest = {"breeds": breeds, "files": files, "photos": files, "captured": {}, "left_out": []}
        write(self.folder, "ingest/report.json", ingest)
        rows = [{"content_hash": key, "split": "test", "breed": BREEDS[int(key[0])]} for key in case.candidate]
        (self.folder / "ingest" / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        sizes = {split: sum(row[split] for row in breeds.values()) for split in ("train", "eval", "test")}
        comparison = {"breeds": BREEDS, "candidates": [CANDIDATE], "winner": "lite2", "reason": "the only candidate"}
        comparison |= {"price": 0.0, "price_unit": "parameters", "split_sizes": sizes}
        write(self.folder, "comparison/comparison.json", comparison)
        self._write_evaluation("evaluation", case.candidate)
        self._write_evaluation("champion_evaluation", case.champion if case.comparable else {})
        write(self.folder, "champion/champion.json", case.info)
        ModelGate.test_call(
            candidate=self.artifact(Model, "winner"),
            candidate_evaluation=self.artifact(ModelEvaluation, "evaluation"),
            champion=self.artifact(Model, "champion"),
            champion_evaluation=self.artifact(ModelEvaluation, "champion_evaluation"),
            ingest=self.artifact(IngestReport, "ingest"),
            blessing=self.artifact(ModelBlessing, "blessing"),
            decision=self.artifact(GateDecision, "decision"),
            metrics=self.artifact(Metrics, "metrics"),
            code_digest="",
            **case.rules,
        )
        gate = json.loads((self.folder / "decision" / "gate.json").read_text(encoding="utf-8"))
        pushed = gate["blessed"] and not case.pushed_before
        version = (2 if case.info else 1) if pushed else None
        push = {"version": version, "already_pushed_as": 1 if case.pushed_before else None}
        write(self.folder, "pushed/push.json", push)
        return gate

    def _write_evaluation(self, name: str, correct: dict[str, bool]) -> None:
        rows = [outcome(*pair) for pair in correct.items()]
        write(self.folder, f"{name}/metrics.json", measurements(rows) if rows else None)
        lines = "\n".join(map(json.dumps, rows))
        (self.folder / name / "outcomes.jsonl").write_text(lines, encoding="utf-8")

    def run_report(self) -> tuple[str, str]:
        """The page and the summary of RunReport as plain text with single spaces."""
        kinds = {"ingest": IngestReport, "verdict": DataVerdict, "examples": Examples, "comparison": Comparison}
        kinds |= {"winner": Model, "evaluation": ModelEvaluation, "decision": GateDecision, "pushed": PushRecord}
        inputs = {key: [self.artifact(kind, key)] for key, kind in kinds.items()}
        inputs["training_0"] = [self.artifact(ModelRun, "training")]
        inputs["trials_0"] = [self.artifact(TunerResults, "trials")]
        outputs = {"page": [self.artifact(HTML, "page.html")], "summary": [self.artifact(Markdown, "summary.md")]}
        registry = str(self.folder / "serving" / "catbreeds")
        parameters = {"registry": registry, "run_id": "run-7", "settings": self._settings, "data": "photos"}
        Executor().Do(inputs, outputs, {**parameters, "candidates": '["lite2"]', "weights_dir": ""})
        page = (self.folder / "page.html").read_text(encoding="utf-8")
        summary = (self.folder / "summary.md").read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)[<`|]", summary.partition("| Candidate |")[0]), summary
        return page_text(page), normalized(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", summary))

    def terminal(self) -> str:
        """The output of `catbreeds report` with single spaces."""
        keys = ("ingest", "verdict", "examples", "comparison", "winner", "evaluation", "decision", "pushed")
        uris = {key: str(self.folder / key) for key in keys}
        by_candidate = {key: {"lite2": str(self.folder / key)} for key in ("training", "trials")}
        artifact_uris = ArtifactUris(**uris, **by_candidate)
        documents = load_documents(
            artifact_uris, self.folder / "serving" / "catbreeds", "run-7", json.loads(self._settings)
        )
        report.write(self.folder / "work" / "report", documents)
        done = CliRunner().invoke(app, ["report", "--workdir", str(self.folder / "work")])
        assert done.exit_code == 0, done.output
        return normalized(done.output)

    def card(self, gate: dict, version: int, record: dict = RECORD) -> str:
        """The model card of a pushed version as plain text with single spaces."""
        admission = {"gate": gate, "pushed_at": "2026-11-28T10:00:00+00:00", "run_id": "run-7", "commit": ""}
        ingest = json.loads((self.folder / "ingest" / "report.json").read_text(encoding="utf-8"))
        metrics = json.loads((self.folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
        card = model_card(
            "catbreeds", version, Statements("a", "b", "c"), record, ingest, metrics, {**admission, "model_uri": "/m"}
        )
        return page_text(card_page(json.loads(json.dumps(card))))


def page_text(page: str) -> str:
    return normalized(html.unescape(re.sub(r"<(style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)))


def normalized(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> GateRun:
    with pytest.MonkeyPatch.context() as patch:
        for chart in ("learning_curves", "tuning_trials", "calibration_curve"):  # slow, and independent of the gate
            patch.setattr(charts, chart, lambda *_: "")
        patch.setattr(report_data, "git_commit", lambda: None)  # runs Git each time
        yield GateRun(tmp_path_factory.mktemp("decisions"))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_all_outputs_show_each_decision_with_all_its_reasons(run, case):
    gate = run.decide(case)
    page, summary = run.run_report()
    outputs = {"page": page, "summary": summary, "terminal": run.terminal()}
    if gate["blessed"] and not case.pushed_before:
        outputs["card"] = run.card(gate, 1)
    assert all(gate["power"]["summary"] in outputs[name] for name in outputs.keys() & {"page", "card"})
    for name, text in outputs.items():
        for reason in gate["reasons"]:
            assert normalized(reason) in text, name
        for breed in gate["candidate"]["never_recognised"]:
            assert gate["outcome"] == "nothing_new" or normalized(breed) in text, name
    assert ("not compared: " in page) == (gate["comparison"] is None)
    assert gate["comparison"] or f"not compared: {normalized(gate['not_compared'])}" in page
    assert f"Balanced accuracy (mean over breeds): {gate['candidate']['balanced_accuracy']:.3f}." in page


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_each_decision_follows_from_the_results_and_reports_its_basis(run, case):
    gate = run.decide(case)
    correct, photos = sum(case.candidate.values()), len(case.candidate)
    reasons = " ".join(gate["reasons"])
    assert gate["reasons"]
    if case.info and not case.info["unreadable"] and case.info["is_candidate"]:
        assert gate["outcome"] == "nothing_new"
        return
    if gate["blessed"]:
        assert photos >= case.rules["min_test_photos"]
        assert correct / photos >= case.rules["min_accuracy"]
        majority_correct = gate["majority"]["accuracy"] * photos
        assert not case.rules["above_majority"] or correct > majority_correct
    assert gate["blessed"] == (
        not re.search(
            "fewer than gate|is below gate|not significantly better|cannot be significantly|fails gate|and significant",
            reasons,
        )
    )
    assert (gate["comparison"] is None) == (gate["not_compared"] is not None)
    assert gate["not_compared"] is None or gate["not_compared"] in gate["reasons"]
    assert ("the breeds differ from those of" in reasons) == (
        bool(case.info) and not case.info["unreadable"] and set(case.info["breeds"]) != set(BREEDS)
    )
    seen = len(set(case.info["learned"]) & set(case.candidate)) if case.comparable else 0
    assert (f"was trained on {seen} of the {photos} test photos" in reasons) == (seen > 0)
    assert gate["comparison"] is None or gate["comparison"]["photos"] == photos - seen
    known = {*case.info["learned"], *case.info["tested"]} if gate["new_photos"] else set(case.candidate)
    new = len(set(case.candidate) - known)
    assert (f"new since version 1: {counted(new, 'photo')} ({new} in test)" in reasons) == (new > 0)


def test_all_outputs_show_the_head_and_the_comparison_out_of_fold(run):
    gate = run.decide(Case(dict.fromkeys(HASHES, True), {}, None, LENIENT, [3, 3, 3], pushed_before=False))
    page, summary = run.run_report()
    assert "0.700 network last block 0.01 0 0.5 0 2 0.3" in page
    row = "| lite2 | 0.650 | 0.60-0.70 | winner | 0.700 | 0.50-0.80 | 1.20 | 0.900 |"
    assert f"| Top-3 accuracy | | --- | --- | --- | --- | --- | --- | --- | --- | {row}" in summary
    assert "OOF accuracy │ 0.650" in run.terminal()
    assert "head logistic regression on all blocks, L2 penalty 0.03 breeds" in run.card(gate, 1)
