"""Compiled specifications run to their end, each task a process: what is pushed, what is refused, what the UI shows."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from serving.registry import Registry
from tests.pipeline.runners.kubeflow.backend import ROOT, Backend, Run, StoredArtifact, TaskFailed
from tests.running import catbreeds

# Each task starts TensorFlow anew, and a test may wait for 33 of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BACKBONES = ("xception", "resnet50", "efficientnetb7")
BEFORE_RETRAINING = {
    *("ImageExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "DataGate", "RetrainGate"),
}


class Cluster(NamedTuple):
    """A backend, its volume, and the photos there.

    Attributes:
        backend: runs specifications.
        photos: what they learn from.
        registry: of what they push.
        run: runs a specification there, with parameters.
    """

    backend: Backend
    photos: Path
    registry: Registry

    def run(self, spec: Path, scheduled: str | None = None, **parameters) -> Run:
        given = {"data": str(self.photos), "registry": str(self.registry.base), **parameters}
        return self.backend.run(spec.read_text(encoding="utf-8"), given, scheduled)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, generate_photos) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    photos = folder / "volume" / "photos"
    shutil.copytree(generate_photos(breeds=3, photos=20), photos)
    return Cluster(Backend(folder / "backend"), photos, Registry(folder / "volume" / "serving" / "catbreeds"))


@pytest.fixture(scope="module")
def first(cluster) -> Run:
    """The smoke specification that is checked in, started by a schedule, with nothing in service yet."""
    spec = ROOT / "kfp_specs" / "smoke.yaml"
    return cluster.run(spec, scheduled="2026-11-29T03:00:00Z", run_date="[[ScheduledTime]]")


@pytest.fixture(scope="module")
def one_backbone(tmp_path_factory) -> Callable[[str], Path]:
    """Writes the specification of a smaller pipeline."""

    def compile_(*settings: str) -> Path:
        folder = tmp_path_factory.mktemp("specs")
        overrides = [part for setting in ("backbones=[resnet50]", *settings) for part in ("--set", setting)]
        done = catbreeds("compile", "--profile", "smoke", "--output", folder, *overrides)
        assert done.returncode == 0, done.stderr
        return folder / "smoke.yaml"

    return compile_


def predictions(version: Path, photos: Path):
    """The probabilities for some photos, by the names of the breeds."""
    tf = pytest.importorskip("tensorflow")
    model = tf.saved_model.load(str(version))
    answer = model.signatures["serving_default"](
        image_bytes=tf.constant([path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[::5]])
    )
    order = answer["breeds"].numpy()[0].argsort()
    return answer["probabilities"].numpy()[:, order].ravel()


def document(artifact: StoredArtifact, name: str):
    return json.loads((artifact.content / name).read_text(encoding="utf-8"))


def test_a_first_run_pushes_the_model_that_the_local_runner_pushes(cluster, first, tmp_path):
    assert set(first.states.values()) == {"SUCCEEDED"}
    assert cluster.registry.labels() == {"stable": 1}
    done = catbreeds("run", "--profile", "smoke", "--data", cluster.photos, "--workdir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    local = Registry(tmp_path / "serving" / "catbreeds")
    assert cluster.registry.record(1) == local.record(1)
    ours, theirs = (predictions(registry.path(1), cluster.photos) for registry in (cluster.registry, local))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_pushed_version_remembers_the_run_and_how_to_make_it_again(cluster, first):
    admission = cluster.registry.admission(1)
    assert (admission["run_id"], admission["run_date"]) == (first.id, "2026-11-29T03:00:00Z")
    assert f"data: {cluster.photos}\n" in admission["settings"]
    assert "min_accuracy: 0.0\n" in admission["settings"]


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


def test_the_ui_draws_the_confusion_of_each_backbone_and_of_the_winner(cluster, first):
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
    for text in ("Admitted: pushed as version 1.", *BACKBONES, first.id, f"--workdir {workdir}", str(cluster.photos)):
        assert text in html
    lines = summary.text().splitlines()
    assert lines[0] == "## Admitted: pushed as version 1."
    assert [line.split()[1] for line in lines if line.startswith("| ")][1:] == list(BACKBONES)


def test_with_nothing_new_a_run_ends_early_and_is_a_success(cluster, first):
    before = cluster.registry.versions()
    again = cluster.run(ROOT / "kfp_specs" / "smoke.yaml", run_date="2026-11-30")
    assert again.tasks("SUCCEEDED") | again.tasks("CACHED") == BEFORE_RETRAINING
    assert again.tasks("CACHED") == {"ImportSchemaGen"}
    assert again.tasks("SKIPPED") == {f"Backbone-{backbone}" for backbone in BACKBONES}
    assert again.tasks("OMITTED") == first.states.keys() - BEFORE_RETRAINING - again.tasks("SKIPPED")
    assert again.artifacts["RetrainGate"]["summary"].text().startswith("**Nothing new**: version 1 was made from this")
    assert cluster.registry.versions() == before


def test_new_photos_retrain_and_the_gate_admits_a_challenger(cluster, first, one_backbone, generate_photos, tmp_path):
    new = generate_photos(breeds=3, photos=5, first=100)
    shutil.copytree(new, cluster.photos, dirs_exist_ok=True)
    # As in 2.15, where a download takes all that begins with the name of the artifact.
    run = cluster._replace(backend=Backend(tmp_path, whole_folders=False)).run(one_backbone())
    assert set(run.states.values()) <= {"SUCCEEDED", "CACHED"}
    assert (cluster.registry.versions(), cluster.registry.labels()) == ([1, 2], {"stable": 1})
    assert cluster.registry.admission(2)["run_date"] == ""  # somebody started it
    gate = document(run.artifacts["ModelGate"]["decision"], "gate.json")
    assert (gate["blessed"], gate["champion"]["version"]) == (True, 1)
    shown = run.artifacts["ModelGate"]["metrics"].properties
    assert (shown["blessed"], shown["champion_version"]) == (1.0, 1.0)
    assert shown["accuracy_difference"] == pytest.approx(gate["comparison"]["accuracy_difference"])
    assert run.artifacts["Evaluator-champion"]["metrics"].properties["photos"] == gate["champion"]["test_photos"]


def test_a_challenger_that_the_rules_of_its_run_refuse_changes_nothing_and_is_told(cluster, first, one_backbone):
    before = cluster.registry.versions(), cluster.registry.labels()
    run = cluster.run(one_backbone("trainer.epochs=2"), gate_min_test_photos=1000)
    assert run.tasks("SKIPPED") == {"GatePassed"}  # by which `catbreeds submit` tells
    assert run.states.keys() == run.tasks("SUCCEEDED") | run.tasks("CACHED") | {"GatePassed"}
    assert (cluster.registry.versions(), cluster.registry.labels()) == before
    gate = document(run.artifacts["ModelGate"]["decision"], "gate.json")
    assert (gate["outcome"], gate["rules"]["min_test_photos"]) == ("refused", 1000)
    assert document(run.artifacts["ServingCheck"]["report"], "serving_check.json") == {"checked": False}
    assert run.artifacts["RunReport"]["summary"].text().startswith("## Refused: no model was pushed")


def test_a_run_on_photos_that_are_not_there_fails_in_words(cluster):
    with pytest.raises(TaskFailed, match="nowhere: no such folder or archive"):
        cluster.run(ROOT / "kfp_specs" / "smoke.yaml", data=str(cluster.photos / "nowhere"))
