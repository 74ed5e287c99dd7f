"""BackboneSelector assembles the winner and compares the candidates in comparison.json."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
from tfx.types import Channel
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults

from components.artifacts import Comparison, IngestReport
from components.candidates import backbone_selector
from components.candidates.backbone_selector import BackboneSelector
from components.file_names import BACKBONE_RECORD_FILE, OUT_OF_FOLD_FILE
from components.json_files import read_json, write_json, write_json_lines
from serving.model_files import MODEL_RECORD_FILE

KINDS = {
    "backbone": Model,
    "model": Model,
    "evaluation": ModelEvaluation,
    "tuner_results": TunerResults,
    "model_run": ModelRun,
    "embeddings": Examples,
}
# Name, accuracy out of fold, bytes of the head, and seconds of its embeddings; the ensemble has no backbone of its own.
CANDIDATES = [("lite2", 0.7, 10, 1.0), ("resnet50", 0.8, 20, 2.0), ("ensemble", 0.9, 40, 0.25)]
BACKBONE_BYTES = {"lite2": 100, "resnet50": 200}


class AssembledModel:
    """Stands in for ServedModel; records the directories that it is assembled from."""

    assembled: ClassVar = []

    def __init__(self, backbones, head, top_k):
        self.assembled.append(([Path(path).parts[-3] for path in backbones], Path(head).parts[-3]))

    def save(self, path, model_name):
        write_json(path, "assembled.json", self.assembled[-1])

    def latency_ms(self):
        return float(len(self.assembled[-1][0]))


def selector(*names: str, ensemble: bool = False) -> BackboneSelector:
    candidates = {name: {key: Channel(type=kind) for key, kind in KINDS.items()} for name in names}
    if ensemble:
        candidates["ensemble"] = {key: Channel(type=kind) for key, kind in KINDS.items() if key != "backbone"}
    return BackboneSelector(
        candidates,
        Channel(type=IngestReport),
        price=0.0,
        price_unit="parameters",
        top_k=5,
        model_name="cats",
        code_digest="",
    )


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Artifact and comparison.json of two backbones, one with a name that is no architecture, and their ensemble."""
    monkeypatch.setattr(backbone_selector, "ServedModel", AssembledModel)
    monkeypatch.setattr(AssembledModel, "assembled", [])

    def artifact(kind, *folders: str):
        created = kind()
        created.uri = str(tmp_path.joinpath(*folders))
        return created

    breeds = {"Manx": {"train": 3, "eval": 2, "test": 1}}
    write_json(str(tmp_path / "report"), "report.json", {"breeds": breeds})
    inputs = {"report": [artifact(IngestReport, "report")]}
    for number, (name, accuracy, head_bytes, seconds) in enumerate(CANDIDATES):
        documents = {
            f"model/Format-Serving/{MODEL_RECORD_FILE}": {
                "breeds": ["Manx"],
                "parameters": head_bytes,
                "hyperparameters": {"units": number},
            },
            "evaluation/metrics.json": {
                "overall": {"accuracy": 0.5, "accuracy_ci95": [0.1, 0.9], "loss": 1.0, "top3_accuracy": 1.0}
            },
            "tuner_results/tuner_results.json": [
                {"tuner/seconds": 0.5, "tuner/epochs": 3, "tuner/initial_epoch": 1} for _ in range(2)
            ],
            "model_run/training.json": {"seconds": 2.0, "epochs": 4},
        }
        if name in BACKBONE_BYTES:
            size = BACKBONE_BYTES[name]
            record = {"weights": "imagenet", "parameters": size, "multiply_adds": 10 * size}
            documents[f"backbone/Format-Serving/{BACKBONE_RECORD_FILE}"] = record
        for path, document in documents.items():
            write_json(str(tmp_path / name), path, document)
        correct = [{"content_hash": f"{i}", "correct": i < 10 * accuracy, "probability": 0.5} for i in range(10)]
        write_json_lines(str(tmp_path / name / "model_run"), OUT_OF_FOLD_FILE, correct)
        for key, size in (("model", head_bytes), ("backbone", BACKBONE_BYTES.get(name))):
            if size:
                saved = tmp_path / name / key / "Format-Serving" / "saved_model.pb"
                saved.write_bytes(bytes(size))
        for key, kind in KINDS.items():
            if key != "backbone" or name in BACKBONE_BYTES:
                inputs[f"{key}_{number}"] = [artifact(kind, name, key)]
        inputs[f"embeddings_{number}"][0].set_float_custom_property("seconds", seconds)
    winner, comparison = artifact(Model, "winner"), artifact(Comparison, "comparison")
    parameters = selector("lite2", "resnet50", ensemble=True).exec_properties
    outputs = {"winner": [winner], "comparison": [comparison]}
    backbone_selector.Executor().Do(inputs, outputs, parameters)
    return winner, read_json(comparison.uri, "comparison.json")


def test_each_candidate_is_assembled_from_its_backbones_and_its_head(compared):
    winner, comparison = compared
    parts = [(["lite2"], "lite2"), (["resnet50"], "resnet50"), (["lite2", "resnet50"], "ensemble")]
    assert AssembledModel.assembled == parts
    assert read_json(f"{winner.uri}/Format-Serving", "assembled.json") == list(parts[2])
    assert (comparison["winner"], winner.get_string_custom_property("backbone")) == ("ensemble", "ensemble")
    assert comparison["reason"] == "most accurate out of fold: 0.900, resnet50 0.800"
    assert (comparison["price"], comparison["price_unit"]) == (0, "parameters")
    assert (comparison["breeds"], comparison["split_sizes"]) == (["Manx"], {"train": 3, "eval": 2, "test": 1})


def test_candidates_are_compared_with_the_winner_on_the_same_photos(compared):
    rows = {row["backbone"]: row for row in compared[1]["candidates"]}
    assert {name: row["oof_accuracy"] for name, row in rows.items()} == {"lite2": 0.7, "resnet50": 0.8, "ensemble": 0.9}
    differences = {name: row["difference_to_winner"] for name, row in rows.items()}
    assert differences == pytest.approx({"lite2": -0.2, "resnet50": -0.1, "ensemble": 0})
    low, high = rows["lite2"]["difference_ci95"]
    assert -0.6 < low < -0.2 < high < 0.2
    assert rows["lite2"]["eval_accuracy"] == 0.5


def test_costs_of_the_ensemble_are_the_sums_over_its_backbones(compared, tmp_path):
    rows = {row["backbone"]: row for row in compared[1]["candidates"]}
    assert {name: row["backbones"] for name, row in rows.items()} == {
        "lite2": ["lite2"],
        "resnet50": ["resnet50"],
        "ensemble": ["lite2", "resnet50"],
    }
    assert {name: row["embedding_seconds"] for name, row in rows.items()} == {
        "lite2": 1.0,
        "resnet50": 2.0,
        "ensemble": 3.25,
    }
    assert {name: row["parameters"] for name, row in rows.items()} == {"lite2": 110, "resnet50": 220, "ensemble": 340}
    assert {name: row["multiply_adds"] for name, row in rows.items()} == {
        "lite2": 1000,
        "resnet50": 2000,
        "ensemble": 3000,
    }

    def size(*folders: str) -> int:
        files = (path for folder in folders for path in (tmp_path / folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    assert rows["lite2"]["saved_model_bytes"] == size("lite2/backbone", "lite2/model")
    assert rows["ensemble"]["saved_model_bytes"] == size("lite2/backbone", "resnet50/backbone", "ensemble/model")
    assert [row["latency_ms_p50"] for row in rows.values()] == [1.0, 1.0, 2.0]
    assert {row["weights"] for row in rows.values()} == {"imagenet"}
    assert (rows["ensemble"]["tuning_seconds"], rows["ensemble"]["tuning_epochs"]) == (1.0, 4)


def test_channels_are_numbered_in_the_order_of_the_candidates():
    component = selector("resnet50", "lite2", ensemble=True)
    assert json.loads(component.exec_properties["candidates"]) == [
        {"name": "resnet50", "backbones": [0]},
        {"name": "lite2", "backbones": [1]},
        {"name": "ensemble", "backbones": [0, 1]},
    ]
    names = {f"{key}_{number}" for key in KINDS for number in range(3)} - {"backbone_2"}
    assert component.inputs.keys() == {"report", *names}


def test_more_candidates_than_channels_are_rejected():
    assert len(selector(*"abcdefg", ensemble=True).inputs) == 1 + 8 * 6 - 1
    with pytest.raises(ValueError, match="9 candidates"):
        selector(*"abcdefgh", ensemble=True)
