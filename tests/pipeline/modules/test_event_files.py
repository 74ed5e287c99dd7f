"""TensorBoard on the workdir of a run, with the command in its report: the table of heads and the learning curves."""

import html
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import keras_tuner as kt
import pytest
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.modules.training import run_fn

NETWORK = {"kind": "network", "blocks": "last", "units": 4, "dropout": 0.2, "learning_rate": 0.01, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def trials(small) -> dict[str, dict]:
    """Rows of tuner_results.json by the name that TensorBoard shows."""
    folder = small.artifact("Tuner-resnet50", "tuner_results")
    rows = json.loads((folder / "tuner_results.json").read_text())
    return {f"Tuner-resnet50/tuner_results/{folder.name}/{row['kind']}-{row['trial_id']}": row for row in rows}


@pytest.fixture(scope="module")
def final(small) -> str:
    """Name that TensorBoard shows for the head of the final training."""
    return f"Trainer-resnet50/model_run/{small.artifact('Trainer-resnet50', 'model_run').name}"


@pytest.fixture(scope="module")
def tensorboard(small):
    """Client of TensorBoard's server, started with the command in the report."""
    page = (small.workdir / "report" / "index.html").read_text()
    name, *arguments = shlex.split(html.unescape(re.search("<code>(tensorboard .*)</code>", page)[1]))
    assert (Path(sys.executable).parent / name).exists()
    server = program.TensorBoard()
    once = ("--load_fast=false", "--reload_task=blocking", "--reload_interval=0")  # reads all files before it starts
    server.configure([name, *arguments, "--port=0", *once])
    with httpx.Client(base_url=f"{server.launch()}data/", trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def heads(tensorboard) -> dict[str, tuple[dict, dict]]:
    """Hyperparameters and metrics of each row of the table in the tab HParams, by its name."""
    experiment = tensorboard.post("plugin/hparams/experiment", json={"includeMetrics": True}).json()
    columns = [{"hparam": column["name"], "includeInResult": True} for column in experiment["hparamInfos"]]
    columns += [{"metric": column["name"]} for column in experiment["metricInfos"]]
    request = {"colParams": columns, "allowedStatuses": ["STATUS_UNKNOWN"], "startIndex": 0, "sliceSize": 1000}
    groups = tensorboard.post("plugin/hparams/session_groups", json=request).json()["sessionGroups"]
    return {
        group["name"]: (group["hparams"], {row["name"]["tag"]: row["value"] for row in group["metricValues"]})
        for group in groups
    }


def test_table_has_each_trial_and_the_final_head(heads, trials, final):
    assert heads.keys() == {*trials, final}
    assert {row["kind"] for row in trials.values()} == {"logistic_regression", "network"}


def test_row_of_a_trial_has_its_hyperparameters_and_results(heads, trials):
    for name, trial in trials.items():
        hyperparameters, metrics = heads[name]
        own = {key: value for key, value in trial.items() if "/" not in key and key not in ("trial_id", "score")}
        epochs = {"epochs": trial["tuner/epochs"]} if trial["kind"] == "network" else {}
        assert hyperparameters == {"candidate": "resnet50", **own, **epochs}
        assert metrics["val_loss"] == pytest.approx(trial["score"])
        assert metrics["seconds"] == pytest.approx(trial["tuner/seconds"])
        assert metrics.keys() == {"val_loss", "val_accuracy", "seconds"}


def test_row_of_the_final_head_has_the_results_of_the_evaluator(small, heads, final):
    (candidate,) = json.loads((small.workdir / "report" / "comparison.json").read_text())["candidates"]
    hyperparameters, metrics = heads[final]
    assert hyperparameters == {"candidate": "resnet50", **candidate["hyperparameters"]}
    assert metrics["val_accuracy"] == pytest.approx(candidate["eval_accuracy"], abs=1e-5)
    assert metrics["val_loss"] == pytest.approx(candidate["eval_loss"], rel=1e-3)
    assert metrics["seconds"] == pytest.approx(candidate["training_seconds"])


def test_curve_of_a_network_has_the_epochs_of_its_trial_and_its_results(tensorboard, heads, trials):
    tags = tensorboard.get("plugin/scalars/tags").json()
    for name, trial in trials.items():
        if trial["kind"] != "network":
            assert tags[name].keys() == {"val_loss", "val_accuracy", "seconds"}
            continue
        curves = {}
        for tag in ("epoch_loss", "epoch_accuracy"):
            curve = tensorboard.get("plugin/scalars/scalars", params={"run": name, "tag": tag}).json()
            _, steps, curves[tag] = zip(*curve, strict=True)
            assert steps == tuple(range(trial["tuner/initial_epoch"] + 1, trial["tuner/epochs"] + 1))
        # The results are those of the epoch with the lowest loss.
        results = [heads[name][1][metric] for metric in ("val_loss", "val_accuracy")]
        assert pytest.approx(results) == min(zip(*curves.values(), strict=True))
    assert any(trial.get("tuner/initial_epoch") for trial in trials.values())


def test_curves_of_a_network_are_those_of_its_final_training(small, tmp_path):
    hyperparameters = kt.HyperParameters()
    for name, value in NETWORK.items():
        hyperparameters.Fixed(name, value)
    embeddings = small.artifact("EmbeddingGen-resnet50", "embeddings")
    settings = {"batch_size": 16, "epochs": 3, "patience": 3}
    run_fn(
        SimpleNamespace(
            custom_config={
                "candidate": "resnet50",
                "trainer": settings,
                "explain": {"level": 0.9},
                "seed": 0,
                "modules": [],
            },
            transform_output=str(small.artifact("Transform-resnet50", "transform_graph")),
            hyperparameters=hyperparameters.get_config(),
            train_files=[f"{embeddings}/Split-train/*"],
            eval_files=[f"{embeddings}/Split-eval/*"],
            serving_model_dir=str(tmp_path / "model"),
            model_run_dir=str(tmp_path / "model_run"),
        )
    )
    training = json.loads((tmp_path / "model_run" / "training.json").read_text())
    for split, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy"):
            events = scalars(tmp_path / "model_run" / split, f"epoch_{name}")
            assert [event.step for event in events] == [1, 2, 3]
            assert [value_of(event) for event in events] == pytest.approx(training["history"][prefix + name])
    (result,) = scalars(tmp_path / "model_run", "val_loss")
    assert value_of(result) == pytest.approx(min(training["history"]["val_loss"]), rel=1e-4)


def scalars(folder: Path, tag: str) -> list:
    (file,) = folder.glob("events.out.tfevents.*")
    return EventAccumulator(str(file)).Reload().Tensors(tag)


def value_of(event) -> float:
    (value,) = event.tensor_proto.float_val
    return value
