"""RetrainGate: a run ends early if and only if a pushed version has the same inputs."""

import json
from pathlib import Path

import pytest
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelEvaluation

from components.artifacts import GateDecision, IngestReport, Markdown, PushRecord, RetrainDecision, ServingReport
from components.candidates import retrain_gate
from components.candidates.retrain_gate import RetrainGate
from components.errors import WeightsError
from components.json_files import write_json
from components.release.pusher import Pusher
from serving.model_files import MODEL_RECORD_FILE
from serving.registry import Registry
from tests.model_files import SIDE, write_model

PHOTOS = [
    {"path": "Birman/1.jpg", "breed": "Birman", "split": "train", "content_hash": "a1"},
    {"path": "Sphynx/1.jpg", "breed": "Sphynx", "split": "test", "content_hash": "b2"},
    {"path": "Sphynx/2.jpg", "breed": "Sphynx", "kind": "duplicate", "reason": "the same photo as Sphynx/1.jpg"},
]
BACKBONES = [
    {"name": name, "image_size": 224, "precision": "float32", "model_file": "", "layers": [], "licence": ""}
    for name in ("resnet50", "xception")
]
PARAMETERS = {
    "backbones": json.dumps(BACKBONES),
    "weights": "imagenet",
    "weights_dir": "",
    "settings": '{"seed": 0}',
    "modules": "serving.photo_normalization",
}


class Gate:
    """Callable that runs the component on an ingestion report and a registry."""

    def __init__(self, folder: Path):
        self.folder, self.registry, self.calls = folder, Registry(folder / "serving"), 0

    def __call__(self, photos: list[dict] = PHOTOS, **changed: str) -> tuple[bool, dict, str]:
        """Return whether the run retrains, the content of retrain.json and the summary."""
        self.calls += 1
        artifacts = {"ingest": IngestReport(), "decision": RetrainDecision(), "summary": Markdown()}
        for name, artifact in artifacts.items():
            artifact.uri = str(self.folder / str(self.calls) / name)
        Path(artifacts["ingest"].uri).mkdir(parents=True)
        lines = "\n".join(json.dumps(row) for row in photos)
        (Path(artifacts["ingest"].uri) / "photos.jsonl").write_text(lines, encoding="utf-8")
        RetrainGate.test_call(**artifacts, registry=str(self.registry.base), **{**PARAMETERS, **changed})
        decision = artifacts["decision"]
        document = json.loads((Path(decision.uri) / "retrain.json").read_text(encoding="utf-8"))
        summary = Path(artifacts["summary"].uri).read_text(encoding="utf-8")
        return decision.get_int_custom_property("retrain") == 1, document, summary

    def push(self, inputs_digest: str | None) -> int:
        """Push a model with this digest of its inputs."""
        model = self.folder / "model"
        (model / MODEL_RECORD_FILE).parent.mkdir(parents=True, exist_ok=True)
        (model / MODEL_RECORD_FILE).write_text('{"model_digest": "r"}', encoding="utf-8")
        (model / "saved_model.pb").touch()
        return self.registry.push(model, {"inputs_digest": inputs_digest})


@pytest.fixture
def gate(tmp_path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def pushed(gate) -> Gate:
    """The gate with a pushed version that was trained from PHOTOS and PARAMETERS."""
    gate.push(gate()[1]["inputs_digest"])
    return gate


def test_a_run_continues_if_the_registry_is_empty(gate):
    retrain, document, summary = gate()
    assert (retrain, document["version"]) == (True, None)
    assert summary.startswith("**New**")


def test_a_run_with_the_inputs_of_a_pushed_version_ends_early_and_reports_the_version(pushed):
    retrain, document, summary = pushed()
    assert (retrain, document["version"]) == (False, 1)
    assert summary.startswith("**Nothing new**: version 1 was trained from this data")


@pytest.mark.parametrize(
    "photos",
    [
        pytest.param(PHOTOS[:1], id="photo removed"),
        pytest.param([*PHOTOS, PHOTOS[0] | {"content_hash": "c3"}], id="photo added"),
        pytest.param([PHOTOS[0] | {"breed": "Sphynx"}, *PHOTOS[1:]], id="breed changed"),
        pytest.param([PHOTOS[0] | {"split": "eval"}, *PHOTOS[1:]], id="split changed"),
    ],
)
def test_changed_photos_are_new(pushed, photos):
    assert pushed(photos)[0]


@pytest.mark.parametrize(
    "photos",
    [
        pytest.param(PHOTOS[::-1], id="order changed"),
        pytest.param(PHOTOS[:2], id="excluded file removed"),
        pytest.param([PHOTOS[0] | {"path": "Birman/renamed.jpg"}, *PHOTOS[1:]], id="file renamed"),
    ],
)
def test_unchanged_photos_are_not_new(pushed, photos):
    assert not pushed(photos)[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": '{"seed": 1}'},
        {"modules": "serving.photo_normalization serving.local.saved_model_process"},
        {"backbones": json.dumps(BACKBONES[:1])},
        {"backbones": json.dumps([BACKBONES[0] | {"image_size": 299}, BACKBONES[1]])},
        {"backbones": json.dumps([network | {"precision": "bfloat16"} for network in BACKBONES])},
    ],
    ids=["settings", "modules", "backbone removed", "image size", "precision"],
)
def test_changed_settings_modules_or_backbones_are_new(pushed, changed):
    assert pushed(**changed)[0]


def test_changed_source_of_a_module_is_new(pushed, monkeypatch):
    monkeypatch.setattr(retrain_gate, "code_digest", lambda *modules: "another")
    assert pushed()[0]


def test_changed_weights_files_are_new(gate, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for backbone in ("resnet50", "xception"):
        (folder / f"{backbone}_notop.weights.h5").write_bytes(b"weights")
    gate.push(gate(weights_dir=str(folder))[1]["inputs_digest"])
    assert not gate(weights_dir=str(folder))[0]
    assert gate()[0]
    (folder / "resnet50_notop.weights.h5").write_bytes(b"others")
    assert gate(weights_dir=str(folder))[0]
    (folder / "resnet50_notop.weights.h5").unlink()
    with pytest.raises(WeightsError, match="no weights for resnet50"):
        gate(weights_dir=str(folder))


def test_the_content_of_a_model_file_counts_and_not_its_path(gate, tmp_path):
    def network(path: Path, **changed) -> dict:
        entry = {
            "name": "net",
            "image_size": SIDE,
            "layers": ["body", "top"],
            "licence": "CC0",
            "model_file": str(path),
        }
        return {"backbones": json.dumps([entry | changed])}

    file = write_model(tmp_path / "net.keras")
    gate.push(gate(**network(file))[1]["inputs_digest"])
    assert not gate(**network(file))[0]
    assert not gate(**network(file.rename(tmp_path / "moved.keras")))[0]
    moved = tmp_path / "moved.keras"
    assert gate(**network(moved, layers=["top"]))[0]
    assert gate(**network(moved, licence="MIT"))[0]
    assert gate(**network(write_model(tmp_path / "other.keras", scale=1 / 127)))[0]
    with pytest.raises(WeightsError, match=r"backbones: net: layers: .* has no layer 'tpo'"):
        gate(**network(moved, layers=["tpo"]))


def test_a_damaged_version_does_not_end_the_run(pushed):
    (pushed.registry.path(1) / "saved_model.pb").unlink()
    assert pushed()[0]
    (pushed.registry.path(1) / "admission.json").write_text("damaged", encoding="utf-8")
    assert pushed()[0]


def test_a_damaged_version_that_is_not_stable_is_trained_and_pushed_again_once(pushed, tmp_path):
    inputs_digest = pushed()[1]["inputs_digest"]
    pushed.push("another")
    pushed.registry.promote(2)
    (pushed.registry.path(1) / "saved_model.pb").unlink()
    (pushed.registry.path(2) / MODEL_RECORD_FILE).write_text('{"model_digest": "s"}', encoding="utf-8")
    assert pushed()[0]
    assert pushed.registry.find_by_model_digest("r") is None  # otherwise, Pusher would never push it again
    pushed.push(inputs_digest)
    assert not pushed()[0]


@pytest.mark.parametrize("blessed", [True, False])
def test_a_run_that_reproduces_a_pushed_model_from_other_inputs_is_not_repeated(gate, tmp_path, blessed):
    """Such a run occurs after a push from another machine, or if only test photos are new."""
    gate.push(None)
    retrain, document, _ = gate()
    assert retrain
    folder = tmp_path / "run"
    artifacts = {
        "model": Model(),
        "decision": GateDecision(),
        "serving_report": ServingReport(),
        "ingest": IngestReport(),
    }
    artifacts |= {"statistics": ExampleStatistics(), "evaluation": ModelEvaluation(), "pushed": PushRecord()}
    artifacts["retrain"] = RetrainDecision()
    for name, artifact in artifacts.items():
        artifact.uri = str(folder / name)
    write_json(artifacts["retrain"].uri, "retrain.json", document)
    decision = {"blessed": blessed, "candidate": {"model_digest": "r"}, "champion": None}
    write_json(artifacts["decision"].uri, "gate.json", decision)
    parameters = ("run_id", "run_date", "schedule_time", "settings", "data", "weights_dir", "model_name")
    parameters += ("data_source", "data_licence", "contact")
    Pusher.test_call(**artifacts, registry=str(gate.registry.base), **dict.fromkeys(parameters, ""))
    push = json.loads((folder / "pushed" / "push.json").read_text(encoding="utf-8"))
    assert push == {"version": None, "already_pushed_as": 1}
    retrain, document, _ = gate()
    assert (retrain, document["version"]) == (False, 1)


def test_a_version_without_an_inputs_digest_does_not_end_the_run(gate):
    gate.push(None)
    assert gate()[0]


def test_the_newest_version_with_the_same_inputs_is_reported(pushed):
    pushed.push(pushed()[1]["inputs_digest"])
    pushed.push("another")
    assert pushed()[1]["version"] == 2
