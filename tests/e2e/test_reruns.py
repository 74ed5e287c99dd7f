"""Reruns: changed settings, new photos, killed runs and failed components."""

import shutil
import signal
import subprocess
import time

import pytest

from serving.registry import Registry
from tests import fork_server
from tests.running import CATBREEDS, SMALL, run_pipeline

DATA = {"ImageExampleGen", "StatisticsGen", "ExampleValidator"}
TRAINING = {f"{node}-resnet50" for node in ("EmbeddingGen", "Transform", "Tuner", "Trainer", "Evaluator")}


def stable_record(run):
    registry = Registry(run.workdir / "serving" / "catbreeds")
    return registry.record(registry.stable())


@pytest.fixture(scope="module")
def rejected(small, copy_small):
    """Second run with another setting of the Trainer and a gate that rejects all candidates."""
    settings = [s for s in small.settings if "epochs=8" not in s]
    return run_pipeline(small.photos, copy_small(), *settings, "trainer.epochs=7", "gate.min_accuracy=1.0")


def test_changed_trainer_setting_reruns_the_trainer_and_later_components(rejected):
    assert {"Trainer-resnet50", "Evaluator-resnet50", "BackboneSelector"} <= rejected.ran
    assert rejected.cached >= DATA | {"Backbone-resnet50", "EmbeddingGen-resnet50", "Tuner-resnet50"}


def test_rejected_candidate_exits_with_3_and_keeps_the_stable_version(rejected):
    assert rejected.process.returncode == 3
    assert "Rejected" in rejected.process.stdout
    registry = Registry(rejected.workdir / "serving" / "catbreeds")
    assert (registry.stable(), registry.versions()) == (1, [1])


def test_new_photos_rerun_dependent_components_and_drift_is_reported(small, copy_small, generate_photos, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(small.photos, photos)
    new_photos = generate_photos(breeds=3, photos=25, offset=100)
    shutil.copytree(new_photos / "Mosscoat", photos / "Mosscoat", dirs_exist_ok=True)
    rerun = run_pipeline(photos, copy_small(), *SMALL)
    assert "Warning" not in small.process.stdout
    assert rerun.process.returncode in (0, 3)
    assert rerun.ran >= DATA | TRAINING | {"DataGate"}
    assert rerun.cached == {"ImportSchemaGen", "Backbone-resnet50"}
    assert "Warning: breed differs from the training photos of the stable version" in rerun.process.stdout


def test_killed_run_resumes_after_completed_components_and_gives_the_same_model(small, tmp_path):
    command = [CATBREEDS, "run", "--profile", "demo", "--data", small.photos, "--workdir", tmp_path]
    overrides = [part for setting in small.settings for part in ("--set", setting)]
    process = fork_server.Popen([*command, *overrides], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("artifacts/Tuner-resnet50/**/trial_*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # during the search
    assert process.wait() == -signal.SIGKILL
    rerun = run_pipeline(small.photos, tmp_path, *small.settings)
    assert rerun.process.returncode == 0
    assert rerun.cached >= DATA | {"DataGate", "Backbone-resnet50", "EmbeddingGen-resnet50", "Transform-resnet50"}
    assert "Tuner-resnet50" in rerun.ran
    assert stable_record(rerun) == stable_record(small)
    assert predictions(rerun) == pytest.approx(predictions(small), abs=1e-4)


def predictions(run):
    tf = pytest.importorskip("tensorflow")
    model = tf.saved_model.load(str(run.workdir / "serving" / "catbreeds" / "1"))
    photos = [path.read_bytes() for path in sorted(run.photos.rglob("*.jpg"))[:6]]
    outputs = model.signatures["serving_default"](image_bytes=tf.constant(photos))
    order = outputs["breeds"].numpy()[0].argsort()
    return outputs["probabilities"].numpy()[:, order].ravel()


def test_failed_component_is_reported_with_cause_and_log(small, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(small.photos, photos)
    for path in sorted(photos.rglob("*.jpg"))[:20]:
        path.write_text("no photo")
    failed = run_pipeline(photos, tmp_path / "work", *small.settings)
    assert failed.process.returncode == 2
    for text in ("DataGate failed", "20 of 75 files cannot be used", "not a JPEG, PNG, WebP", "Log: "):
        assert text in failed.process.stdout
    assert "Traceback" not in failed.process.stdout + failed.process.stderr
    assert not (tmp_path / "work" / "artifacts" / "EmbeddingGen-resnet50").exists()


def test_concurrent_run_in_the_same_workdir_is_rejected(small):
    from filelock import FileLock

    with FileLock(small.workdir / ".run.lock"):
        concurrent = run_pipeline(small.photos, small.workdir, *small.settings)
    assert concurrent.process.returncode == 2
    assert "another run is in progress" in concurrent.process.stderr
