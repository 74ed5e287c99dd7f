"""Runs in bfloat16: what they record, how their model is served, and that they give the same model again."""

import json

import numpy as np
import pytest

from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import read_json
from serving.local.model_server import LocalServer
from serving.precision import precision_of, tolerances
from serving.registry import Registry
from serving.rollout.golden_requests import check_golden_requests, read_golden_requests
from tests.amx import needs_amx
from tests.running import SMALL, Run, catbreeds, run_pipeline

pytestmark = [needs_amx, pytest.mark.slow]

SAME = 1e-4  # largest difference in probability between runs in one precision


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory) -> list[Run]:
    """Two runs in bfloat16 on the same photos, in new workdirs; `auto` is bfloat16 on a CPU with AMX."""
    settings = ("bfloat16", "auto")
    runs = [run_pipeline(small.photos, tmp_path_factory.mktemp(s), *SMALL, f"precision={s}") for s in settings]
    assert [run.process.returncode for run in runs] == [0, 0], runs[0].process.stderr + runs[1].process.stderr
    return runs


def registry(run: Run) -> Registry:
    return Registry(run.workdir / "serving" / "catbreeds")


def probabilities(run: Run) -> np.ndarray:
    """Probabilities of the stable version for the first photo of each breed, float32 [breeds, breeds]."""
    photos = [min(folder.iterdir()) for folder in sorted(run.photos.iterdir())]
    done = catbreeds("predict", *photos, "--workdir", run.workdir, "--json")
    assert done.returncode == 0, done.stderr
    rows = [{p["breed"]: p["probability"] for p in row["predictions"]} for row in json.loads(done.stdout)["photos"]]
    return np.array([[row[breed] for breed in sorted(row)] for row in rows])


def test_the_precision_is_recorded(runs):
    for run in runs:
        backbone = read_json(str(run.artifact("Backbone-resnet50", "model")), f"Format-Serving/{BACKBONE_RECORD_FILE}")
        assert backbone["precision"] == "bfloat16"
        assert precision_of(registry(run).record(1)) == "bfloat16"
        card = json.loads((registry(run).path(1) / "model_card.json").read_text())
        assert [backbone["precision"] for backbone in card["model"]["backbones"]] == ["bfloat16"]
        settings = json.loads(registry(run).admission(1)["settings"])
        assert settings["precision"] == "bfloat16"


def test_two_runs_give_the_same_model_and_another_than_a_run_in_float32(runs, small):
    first, second = runs
    digests = [registry(run).record(1)["model_digest"] for run in (first, second, small)]
    assert digests[0] == digests[1] != digests[2]
    assert np.abs(probabilities(first) - probabilities(second)).max() <= SAME
    assert np.abs(probabilities(first) - probabilities(small)).max() > SAME


def test_a_model_server_returns_the_golden_predictions(runs):
    version = registry(runs[0]).path(1)
    server = LocalServer(registry(runs[0]), "catbreeds")
    try:
        requests = read_golden_requests(version)
        assert requests
        check_golden_requests(server.grpc, "catbreeds", 1, requests, tolerances(registry(runs[0]).record(1)))
    finally:
        server.stop()
