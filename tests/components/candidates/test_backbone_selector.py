"""Selection of the winner among the candidates, and their rows in comparison.json."""

import itertools
import json
from pathlib import Path
from typing import ClassVar

import pytest
from tfx.types import Channel
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults

from components.artifacts import Comparison, IngestReport
from components.candidates import backbone_selector
from components.candidates.backbone_selector import BackboneSelector, select
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import read_json, write_json
from serving.model_files import MODEL_RECORD_FILE

XCEPTION = {"backbone": "xception", "eval_accuracy": 0.80, "parameters": 20_861_480}
RESNET50 = {"backbone": "resnet50", "eval_accuracy": 0.85, "parameters": 23_587_712}
EFFICIENTNET = {"backbone": "efficientnetb7", "eval_accuracy": 0.85, "parameters": 64_097_687}


@pytest.mark.parametrize("rows", itertools.permutations([XCEPTION, {**RESNET50, "eval_accuracy": 0.7}, EFFICIENTNET]))
def test_most_accurate_candidate_wins_regardless_of_size_and_order(rows):
    winner, reason = select(list(rows), "most_accurate")
    assert winner == "efficientnetb7"
    assert "most accurate" in reason
    assert "0.850, ahead of xception with 0.800" in reason


@pytest.mark.parametrize("rows", itertools.permutations([XCEPTION, RESNET50, EFFICIENTNET]))
def test_smaller_of_equally_accurate_candidates_wins(rows):
    winner, reason = select(list(rows), "most_accurate")
    assert winner == "resnet50"
    assert reason == "as accurate on eval as efficientnetb7 (0.850), with fewer parameters"


def test_single_candidate_wins_with_its_own_reason():
    assert select([XCEPTION], "smaller_within_interval") == ("xception", "the only candidate")


@pytest.mark.parametrize(
    ("low", "winner"), [(0.86, "efficientnetb7"), (0.85, "resnet50"), (0.801, "resnet50"), (0.80, "xception")]
)
def test_smallest_candidate_within_the_interval_wins(low, winner):
    best = {**EFFICIENTNET, "eval_accuracy": 0.90, "eval_accuracy_ci95": [low, 0.95]}
    for rows in itertools.permutations([XCEPTION, RESNET50, best]):
        chosen, reason = select(list(rows), "smaller_within_interval")
        assert chosen == winner
        assert "efficientnetb7" in reason or "most accurate" in reason


def test_reason_contains_interval_size_and_both_accuracies():
    best = {**EFFICIENTNET, "eval_accuracy": 0.90, "eval_accuracy_ci95": [0.8, 0.95]}
    _, reason = select([best, XCEPTION, RESNET50], "smaller_within_interval")
    assert reason == (
        "smallest network, with 20.9 million parameters, of the 3 whose accuracy on eval is within the 95% CI of the "
        "most accurate one: 0.800, against 0.900 (0.800 to 0.950) for efficientnetb7"
    )


KINDS = {
    "backbone": Model,
    "model": Model,
    "evaluation": ModelEvaluation,
    "tuner_results": TunerResults,
    "model_run": ModelRun,
    "embeddings": Examples,
}
# Name, accuracy on eval, bytes of the head, and seconds of its embeddings; the ensemble has no backbone of its own.
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
        candidates, Channel(type=IngestReport), rule="most_accurate", top_k=5, model_name="cats", code_digest=""
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
                "overall": {"accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], "loss": 1.0, "top3_accuracy": 1.0}
            },
            "tuner_results/tuner_results.json": [
                {"tuner/seconds": 0.5, "tuner/epochs": 3, "tuner/initial_epoch": 1} for _ in range(2)
            ],
            "model_run/training.json": {"seconds": 2.0, "epochs": 4},
        }
        if name in BACKBONE_BYTES:
            record = {"weights": "imagenet", "parameters": BACKBONE_BYTES[name]}
            documents[f"backbone/Format-Serving/{BACKBONE_RECORD_FILE}"] = record
        for path, document in documents.items():
            write_json(str(tmp_path / name), path, document)
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
    assert comparison["reason"] == "most accurate on eval: 0.900, ahead of resnet50 with 0.800"
    assert (comparison["breeds"], comparison["split_sizes"]) == (["Manx"], {"train": 3, "eval": 2, "test": 1})


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
