"""Runs of compiled specifications in the backend emulation: pushed and rejected models, and artifacts for the UI."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from serving.registry import Registry
from tests.model_files import SIDE, write_model
from tests.pipeline.runners.kubeflow.backend import ROOT, Backend, Run, StoredArtifact, TaskFailed
from tests.running import catbreeds

# Each task imports TensorFlow, and a test may run 33 of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BACKBONES = ("xception", "resnet50", "efficientnetb7")
BEFORE_RETRAINING = {
    *("ImageExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "DataGate", "RetrainGate"),
}


class Cluster(NamedTuple):
    """An emulated cluster with a volume.

    Attributes:
        backend: Emulated backend, which runs specifications.
        photos: Folder of photos on the volume.
        registry: Registry on the volume.
    """

    backend: Backend
    photos: Path
    registry: Registry

    def run(self, spec: Path, scheduled: str | None = None, **parameters) -> Run:
        values = {"data": str(self.photos), "registry": str(self.registry.base), **parameters}
        return self.backend.run(spec.read_text(encoding="utf-8"), values, scheduled)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, generate_photos) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    photos = folder / "volume" / "photos"
    shutil.copytree(generate_photos(breeds=3, photos=20), photos)
    return Cluster(Backend(folder / "backend"), photos, Registry(folder / "volume" / "serving" / "catbreeds"))


@pytest.fixture(scope="module")
def first(cluster) -> Run:
    """A scheduled run of the checked-in smoke specification, with an empty registry."""
    spec = ROOT / "kfp_specs" / "smoke.yaml"
    return cluster.run(spec, scheduled="2026-11-29T03:00:00Z", run_date="[[ScheduledTime]]")


@pytest.fixture(scope="module")
def one_backbone(tmp_path_factory) -> Callable[[str], Path]:
    """Function that compiles a pipeline with one backbone and returns the path of the specification."""

    def compile_(*settings: str) -> Path:
        folder = tmp_path_factory.mktemp("specs")
        overrides = [part for setting in ("backbones=[resnet50]", *settings) for part in ("--set", setting)]
        done = catbreeds("compile", "--profile", "smoke", "--output", folder, *overrides)
        assert done.returncode == 0, done.stderr
        return folder / "smoke.yaml"

    return compile_


def predictions(version: Path, photos: Path):
    """Predicted probabilities of some photos, in alphabetical order of the breeds."""
    tf = pytest.importorskip("tensorflow")
    model = tf.saved_model.load(str(version))
    outputs = model.signatures["serving_default"](
        image_bytes=tf.constant([path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[::5]])
    )
    order = outputs["breeds"].numpy()[0].argsort()
    return outputs["probabilities"].numpy()[:, order].ravel()


def document(artifact: StoredArtifact, name: str):
    return json.loads((artifact.content / name).read_text(encoding="utf-8"))


def test_the_first_run_pushes_the_same_model_as_the_local_runner(cluster, first, tmp_path):
    assert set(first.states.values()) == {"SUCCEEDED"}
    assert cluster.registry.labels() == {"stable": 1}
    # The emulated backend runs two tasks at a time: their number must not change the model either.
    options = ("--data", cluster.photos, "--workdir", tmp_path, "--set", "workers=1")
    done = catbreeds("run", "--profile", "smoke", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    local = Registry(tmp_path / "serving" / "catbreeds")
    assert cluster.registry.record(1) == local.record(1)
    cluster_predictions, local_predictions = (
        predictions(registry.path(1), cluster.photos) for registry in (cluster.registry, local)
    )
    assert cluster_predictions == pytest.approx(local_predictions, abs=1e-4)


def test_a_pushed_version_records_its_run_and_the_settings_that_reproduce_it(cluster, first):
    admission = cluster.registry.admission(1)
    assert (admission["run_id"], admission["run_date"]) == (first.id, "2026-11-29T03:00:00Z")
    settings = json.loads(admission["settings"])
    assert settings["data"] == str(cluster.photos)
    assert settings["gate"]["min_accuracy"] == 0


def test_the_ui_has_comparable_numbers_for_each_backbone_and_for_the_gate(first):
    for backbone in BACKBONES:
        artifact = first.artifacts[f"Evaluator-{backbone}"]["metrics"]
        measured = document(first.artifacts[f"Evaluator-{backbone}"]["evaluation"], "metrics.json")["overall"]
        assert artifact.type == "system.Metrics"
        assert all(isinstance(value, float) for value in artifact.properties.values())
        assert artifact.properties.keys() == {
            *("accuracy", "accuracy_low95", "accuracy_high95", "loss", "top3_accuracy", "photos"),
            "expected_calibration_error",
        }
        assert artifact.properties["accuracy"] == pytest.approx(measured["accuracy"])
    gate = first.artifacts["ModelGate"]["metrics"]
    decision = document(first.artifacts["ModelGate"]["decision"], "gate.json")
    assert gate.type == "system.Metrics"
    assert gate.properties == {
        "blessed": 1.0,
        "test_accuracy": pytest.approx(decision["candidate"]["test_accuracy"]),
        "test_photos": decision["candidate"]["test_photos"],
        "balanced_accuracy": pytest.approx(decision["candidate"]["balanced_accuracy"]),
        "majority_accuracy": pytest.approx(decision["majority"]["accuracy"]),
    }
    assert decision["rules"]["above_majority"] is False


def test_the_ui_shows_the_confusion_matrix_of_each_backbone_and_of_the_winner(cluster, first):
    breeds = {path.name for path in cluster.photos.iterdir()}
    for node in (*BACKBONES, "gate"):
        artifact = first.artifacts[f"Evaluator-{node}"]["confusion"]
        assert artifact.type == "system.ClassificationMetrics"
        assert artifact.properties.keys() == {"confusionMatrix"}
        matrix = artifact.properties["confusionMatrix"]["struct"]
        assert {spec["displayName"] for spec in matrix["annotationSpecs"]} == breeds
        photos = document(first.artifacts[f"Evaluator-{node}"]["evaluation"], "metrics.json")["overall"]["photos"]
        assert sum(sum(row["row"]) for row in matrix["rows"]) == photos
        assert [len(row["row"]) for row in matrix["rows"]] == [3, 3, 3]


def test_the_ui_shows_the_report_and_the_verdict(cluster, first):
    page, summary = (first.artifacts["RunReport"][key] for key in ("page", "summary"))
    assert (page.type, summary.type) == ("system.HTML", "system.Markdown")
    html = page.text()
    assert html.lower().startswith("<!doctype html>")
    assert not re.search(r'(src|href)="http', html)
    workdir = cluster.registry.base.parents[1]
    for text in ("Passed: pushed as version 1.", *BACKBONES, first.id, f"--workdir {workdir}", str(cluster.photos)):
        assert text in html
    lines = summary.text().splitlines()
    assert lines[0] == "## Passed: pushed as version 1."
    table = [line for line in lines if line.startswith("| ")]
    assert [row.split()[1] for row in table[2:]] == [*BACKBONES, "ensemble"]


def test_a_run_with_nothing_new_skips_training_and_succeeds(cluster, first):
    before = cluster.registry.versions()
    again = cluster.run(ROOT / "kfp_specs" / "smoke.yaml", run_date="2026-11-30")
    assert again.tasks("SUCCEEDED") | again.tasks("CACHED") == BEFORE_RETRAINING
    assert again.tasks("CACHED") == {"ImportSchemaGen"}
    assert again.tasks("SKIPPED") == {f"Backbone-{backbone}" for backbone in BACKBONES}
    assert again.tasks("OMITTED") == first.states.keys() - BEFORE_RETRAINING - again.tasks("SKIPPED")
    assert (
        again.artifacts["RetrainGate"]["summary"].text().startswith("**Nothing new**: version 1 was trained from this")
    )
    assert cluster.registry.versions() == before


def test_new_photos_and_a_backbone_from_a_file_trigger_training_and_the_new_model_passes_the_gate(
    cluster, first, one_backbone, generate_photos, tmp_path
):
    new = generate_photos(breeds=3, photos=5, offset=100)
    shutil.copytree(new, cluster.photos, dirs_exist_ok=True)
    # As in version 2.15, where a download includes all objects whose key starts with the artifact's URI.
    file = write_model(cluster.photos.parent / "net.keras")
    spec = one_backbone(f"backbones=[{{name: my_net, model: {file}, image_size: {SIDE}, layers: [body, top]}}]")
    run = cluster._replace(backend=Backend(tmp_path, whole_folders=False)).run(spec)
    assert set(run.states.values()) <= {"SUCCEEDED", "CACHED"}
    assert (cluster.registry.versions(), cluster.registry.labels()) == ([1, 2], {"stable": 1})
    assert cluster.registry.admission(2)["run_date"] == ""  # not scheduled
    origin = document(run.artifacts["RetrainGate"]["decision"], "retrain.json")["origin"]
    assert origin["weights"] == {"my_net": cluster.registry.record(2)["backbone"]["weights_digest"]}
    gate = document(run.artifacts["ModelGate"]["decision"], "gate.json")
    assert (gate["blessed"], gate["champion"]["version"]) == (True, 1)
    shown = run.artifacts["ModelGate"]["metrics"].properties
    assert (shown["blessed"], shown["champion_version"]) == (1.0, 1.0)
    assert shown["accuracy_difference"] == pytest.approx(gate["comparison"]["accuracy_difference"])
    assert run.artifacts["Evaluator-champion"]["metrics"].properties["photos"] == gate["champion"]["test_photos"]


def test_a_model_that_the_gate_rejects_is_not_pushed_and_the_run_shows_it(cluster, first, one_backbone):
    before = cluster.registry.versions(), cluster.registry.labels()
    run = cluster.run(one_backbone("trainer.epochs=2"), gate_min_test_photos=1000)
    assert run.tasks("SKIPPED") == {"GatePassed"}  # `catbreeds submit` reads the decision from this state
    assert run.states.keys() == run.tasks("SUCCEEDED") | run.tasks("CACHED") | {"GatePassed"}
    assert (cluster.registry.versions(), cluster.registry.labels()) == before
    gate = document(run.artifacts["ModelGate"]["decision"], "gate.json")
    assert (gate["outcome"], gate["rules"]["min_test_photos"]) == ("refused", 1000)
    assert document(run.artifacts["ServingCheck"]["report"], "serving_check.json") == {"checked": False}
    assert run.artifacts["RunReport"]["summary"].text().startswith("## Rejected: nothing pushed.")


def test_a_run_without_photos_fails_with_a_clear_message(cluster):
    with pytest.raises(TaskFailed, match="nowhere: no such folder or archive"):
        cluster.run(ROOT / "kfp_specs" / "smoke.yaml", data=str(cluster.photos / "nowhere"))
