"""Workdirs and registries of an earlier version of this project can still be used.

The archive next to this file contains the workdir `/catbreeds/work`. Two runs of commit 7e3dd0b wrote it, with the
settings below and the photos of `catbreeds sample-data --breeds 3 --photos 16`. A network of two convolutions replaced
ResNet50, which keeps the archive small.
"""

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from pipeline.results.past_run import PastRun
from serving.registry import Registry
from tests.running import SMALL, Run, catbreeds, run_pipeline

ARCHIVE = Path(__file__).with_name("workdir_written_by_7e3dd0b.tar.xz")
ORIGINAL_WORKDIR = "/catbreeds/work"
SETTINGS = (*SMALL, "gate.min_accuracy=0", "gate.policy=not_worse", "gate.margin=1", "gate.max_slice_drop=1")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The unpacked workdir, with its stored paths adjusted. Tests only read it."""
    folder = tmp_path_factory.mktemp("earlier_version")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    workdir = folder / "work"
    with sqlite3.connect(workdir / "metadata.sqlite") as database:
        database.execute("UPDATE Artifact SET uri = replace(uri, ?, ?)", (ORIGINAL_WORKDIR, str(workdir)))
    database.close()
    return workdir


@pytest.fixture
def workdir(unpacked, tmp_path) -> Path:
    """Copy of the registry for tests that change labels."""
    shutil.copytree(unpacked / "serving", tmp_path / "serving")
    return tmp_path


@pytest.fixture(scope="module")
def next_run(unpacked, generate_photos, tmp_path_factory) -> Run:
    """Run of the current code in a copy of the workdir, on the same photos."""
    copy = tmp_path_factory.mktemp("continued") / "work"
    shutil.copytree(unpacked, copy)
    run = run_pipeline(generate_photos(breeds=3, photos=16), copy, *SETTINGS)
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    return run


def json_output(workdir: Path, *arguments):
    done = catbreeds(*arguments, "--workdir", workdir, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_models_lists_the_versions_with_their_labels_and_reasons(unpacked):
    first, second = json_output(unpacked, "models")
    assert (first["version"], first["labels"], second["version"], second["labels"]) == (1, ["stable"], 2, [])
    assert first["backbone"] == second["backbone"] == "resnet50"
    assert first["test_accuracy"] == pytest.approx(0.6)
    assert any("against version 1" in reason for reason in second["reasons"])


def test_report_shows_the_last_run(unpacked):
    done = catbreeds("report", "--workdir", unpacked)
    assert done.returncode == 0, done.stderr
    for text in ("Winner: resnet50", "pushed as version 2", "Stable version: 1."):
        assert text in done.stdout


def test_notebook_helpers_read_the_last_run(unpacked):
    run = PastRun(unpacked, "Pusher")
    assert [row["backbone"] for row in run.comparison["candidates"]] == ["resnet50"]
    assert run.evaluation("resnet50").metrics["overall"]["photos"] == 8
    assert run.trials("resnet50")


def test_lineage_contains_data_settings_and_code_of_a_version(unpacked):
    lineage = json_output(unpacked, "lineage", 2)
    record = Registry(unpacked / "serving" / "catbreeds").record(2)
    assert lineage["data"]["data"] == "/catbreeds/photos"
    assert lineage["settings"]["trainer"]["epochs"] == 3
    assert lineage["weights"] == record["backbone"]
    assert lineage["code"]["Trainer-resnet50"] == record["code_digest"]
    assert len(json_output(unpacked, "lineage", 2, "--photos")) > 20


def test_gate_repeats_the_decision_from_recorded_evaluations(unpacked):
    repeated = json_output(unpacked, "gate")
    assert (repeated["outcome"], repeated["blessed"], repeated["champion"]["version"]) == ("blessed", True, 1)
    assert catbreeds("gate", "--set", "gate.min_accuracy=1", "--workdir", unpacked).returncode == 3
    power = catbreeds("gate", "--policy", "no_harm", "--power", "--workdir", unpacked)
    assert power.returncode == 0
    assert "gate.policy=no_harm with gate.margin=1 rejects" in power.stdout


def test_promote_and_rollback_move_the_stable_label(workdir):
    assert catbreeds("promote", 2, "--workdir", workdir).returncode == 0
    assert Registry(workdir / "serving" / "catbreeds").labels() == {"stable": 2}
    assert catbreeds("rollback", "--workdir", workdir).returncode == 0
    assert Registry(workdir / "serving" / "catbreeds").labels() == {"stable": 1}


def test_predict_uses_a_version_of_the_earlier_registry(unpacked, generate_photos):
    photo = next(generate_photos(breeds=2, photos=1, offset=1000).rglob("*.jpg"))
    (row,) = json_output(unpacked, "predict", photo)["photos"]
    assert row["model"]["version"] == 1
    assert len(row["predictions"]) == 3
    assert (row["prediction_set"], row["unfamiliar"]) == (None, None)


def test_next_run_compares_its_candidate_with_the_stable_version(next_run):
    gate = json.loads((next_run.workdir / "report" / "gate.json").read_text())
    assert (gate["champion"]["version"], gate["pushed_version"]) == (1, 3)
    assert gate["comparison"]["photos"] == gate["champion"]["test_photos"] == 10
    assert [row["version"] for row in json_output(next_run.workdir, "models")] == [1, 2, 3]
    assert json_output(next_run.workdir, "lineage", 1)["weights"]["architecture"] == "resnet50"


def test_next_run_trains_once_and_then_uses_the_cache(next_run):
    """The code digest includes module names, so an upgrade that renames modules causes one retraining."""
    assert "Trainer-resnet50" in next_run.ran
    again = run_pipeline(next_run.photos, next_run.workdir, *SETTINGS)
    assert again.process.returncode == 0, again.process.stdout
    assert "Trainer-resnet50" in again.cached
    assert not {node for node in again.ran if "resnet50" in node}
