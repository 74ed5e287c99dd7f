"""Components with artifacts in a bucket, as on Vertex AI: gates, checks, the push and the report.

The bucket is a local folder with its own URL scheme, which TFX file systems support but TensorFlow and `open` do not.
"""

import json
import shutil
from pathlib import Path

import pytest
from tfx.components.evaluator import constants
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.io import filesystem_registry
from tfx.dsl.io.plugins.local import LocalFilesystem
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import (
    ExampleAnomalies,
    Examples,
    ExampleStatistics,
    HyperParameters,
    Model,
    ModelBlessing,
    ModelEvaluation,
    ModelRun,
    Schema,
    TransformGraph,
    TunerResults,
)

from components import artifacts
from components.candidates import backbone_selector, tuner
from components.candidates.backbone import find_weights
from components.candidates.retrain_gate import RetrainGate
from components.digests import file_digest
from components.evaluation_result import read_outcomes
from components.ingestion.data_gate import DataGate
from components.json_files import read_json
from components.release.champion_model import ChampionModel
from components.release.model_gate import ModelGate
from components.release.pusher import Pusher
from components.release.serving_check import ServingCheck
from components.reporting import run_report
from pipeline.settings import load, to_json
from serving.model_files import REFERENCE_PHOTOS_FILE
from serving.registry import Registry, RegistryError
from tests.running import catbreeds

SCHEME = "bucket://"


def create_file_system(folder: Path) -> type:
    """Create a TFX file system that maps bucket addresses to `folder`."""

    def to_local(path: str) -> str:
        return str(folder / path.removeprefix(SCHEME)) if path.startswith(SCHEME) else path

    def to_remote(path: str) -> str:
        return SCHEME + str(Path(path).relative_to(folder))

    class Bucket(LocalFilesystem):
        SUPPORTED_SCHEMES = (SCHEME,)

        @staticmethod
        def glob(pattern):
            return [to_remote(path) for path in LocalFilesystem.glob(to_local(pattern))]

        @staticmethod
        def walk(top, topdown=True, onerror=None):
            for path, folders, files in LocalFilesystem.walk(to_local(top), topdown, onerror):
                yield to_remote(path), folders, files

    def delegate(name: str) -> staticmethod:
        method = getattr(LocalFilesystem, name)
        return staticmethod(lambda *paths, **options: method(*map(to_local, paths), **options))

    reading, changing = (
        ("open", "exists", "isdir", "listdir", "stat"),
        ("copy", "makedirs", "mkdir", "remove", "rename"),
    )
    for name in (*reading, *changing, "rmtree"):
        setattr(Bucket, name, delegate(name))
    return Bucket


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    """The folder of `bucket://`; one for the whole session, because TFX keeps the first file system of a scheme."""
    folder = tmp_path_factory.mktemp("bucket")
    filesystem_registry.DEFAULT_FILESYSTEM_REGISTRY.register(create_file_system(folder), priority=0)
    return folder


class Remote:
    """The artifacts of a run, copied to the bucket."""

    def __init__(self, artifacts_folder: Path, bucket: Path):
        shutil.copytree(artifacts_folder, bucket / "run", dirs_exist_ok=True)
        self.bucket, self.outputs = bucket, 0

    def input(self, kind: type, node: str, key: str):
        """The newest output artifact of a component."""
        newest = max((self.bucket / "run" / node / key).iterdir(), key=lambda path: int(path.name))
        artifact = kind()
        artifact.uri = SCHEME + str(newest.relative_to(self.bucket))
        if kind in (Examples, ExampleStatistics):
            artifact.split_names = artifact_utils.encode_split_names(["train", "eval", "test"])
        return artifact

    def output(self, kind: type):
        self.outputs += 1
        artifact = kind()
        artifact.uri = f"{SCHEME}outputs/{self.outputs}"
        return artifact


@pytest.fixture(scope="module")
def remote(small, bucket) -> Remote:
    return Remote(small.workdir / "artifacts", bucket)


@pytest.fixture
def registry(small, tmp_path) -> Registry:
    """A registry whose version 1 is a different model of the same breeds."""
    base = tmp_path / "serving" / "catbreeds"
    shutil.copytree(small.workdir / "serving" / "catbreeds", base)
    record = base / "1" / "assets.extra" / "catbreeds.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model_digest": "another"}))
    return Registry(base)


@pytest.fixture(scope="module")
def winner(remote):
    """The model and the comparison that BackboneSelector writes."""
    embeddings = remote.input(Examples, "EmbeddingGen-resnet50", "embeddings")
    embeddings.set_float_custom_property("seconds", 1.0)
    inputs = {
        "report": remote.input(artifacts.IngestReport, "ImageExampleGen", "report"),
        "backbone_0": remote.input(Model, "Backbone-resnet50", "model"),
        "model_0": remote.input(Model, "Trainer-resnet50", "model"),
        "evaluation_0": remote.input(ModelEvaluation, "Evaluator-resnet50", "evaluation"),
        "tuner_results_0": remote.input(TunerResults, "Tuner-resnet50", "tuner_results"),
        "model_run_0": remote.input(ModelRun, "Trainer-resnet50", "model_run"),
        "embeddings_0": embeddings,
    }
    outputs = {"winner": [remote.output(Model)], "comparison": [remote.output(artifacts.Comparison)]}
    parameters = {
        "candidates": '[{"name": "resnet50", "backbones": [0]}]',
        "price": 0.0,
        "price_unit": "parameters",
        "top_k": 2,
        "model_name": "catbreeds",
        "code_digest": "",
    }
    backbone_selector.Executor().Do({key: [value] for key, value in inputs.items()}, outputs, parameters)
    assert read_json(outputs["comparison"][0].uri, "comparison.json")["candidates"][0]["saved_model_bytes"] > 1e6
    return outputs["winner"][0], outputs["comparison"][0]


def test_a_run_with_artifacts_in_a_bucket_passes_the_gate_and_is_pushed_and_reported(small, remote, registry, winner):
    model, comparison = winner
    examples = remote.input(Examples, "ImageExampleGen", "examples")
    ingest = remote.input(artifacts.IngestReport, "ImageExampleGen", "report")
    statistics = remote.input(ExampleStatistics, "StatisticsGen", "statistics")
    evaluation = remote.input(ModelEvaluation, "Evaluator-gate", "evaluation")
    settings = load("demo", small.settings)

    verdict = remote.output(artifacts.DataVerdict)
    DataGate.test_call(
        anomalies=remote.input(ExampleAnomalies, "ExampleValidator", "anomalies"),
        statistics=statistics,
        schema=remote.input(Schema, "ImportSchemaGen", "schema"),
        report=ingest,
        verdict=verdict,
        schema_file="schema.pbtxt",
        registry=str(registry.base),
        max_bad_share=1.0,
        min_photos_per_breed=1,
        code_digest="",
    )
    retrain = remote.output(artifacts.RetrainDecision)
    RetrainGate.test_call(
        ingest=ingest,
        decision=retrain,
        summary=remote.output(artifacts.Markdown),
        registry=str(registry.base),
        backbones=json.dumps([{"name": "resnet50", "model_file": ""}]),
        weights="random",
        weights_dir="",
        settings="{}",
        modules="components.ingestion.splits",
    )
    champion = remote.output(Model)
    ChampionModel.test_call(candidate=model, champion=champion, registry=str(registry.base), code_digest="")
    assert read_json(champion.uri, "champion.json")["version"] == 1
    assert (remote.bucket / champion.uri.removeprefix(SCHEME) / "Format-Serving" / "saved_model.pb").is_file()

    blessing, decision = remote.output(ModelBlessing), remote.output(artifacts.GateDecision)
    rules = settings.gate.model_dump() | {"min_accuracy": 0.0, "min_test_photos": 1, "margin": 1.0}
    rules |= {"policy": "not_worse"}
    ModelGate.test_call(
        candidate=model,
        candidate_evaluation=evaluation,
        champion=champion,
        champion_evaluation=evaluation,
        ingest=ingest,
        blessing=blessing,
        decision=decision,
        metrics=remote.output(artifacts.Metrics),
        code_digest="",
        **rules,
    )
    assert blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY), read_json(
        decision.uri, "gate.json"
    )
    report = remote.output(artifacts.ServingReport)
    ServingCheck.test_call(
        model=model,
        blessing=blessing,
        examples=examples,
        evaluation=evaluation,
        report=report,
        photos=2,
        code_digest="",
    )
    assert read_json(report.uri, "serving_check.json")["checked"]

    pushed = remote.output(artifacts.PushRecord)
    parameters = {
        "registry": str(registry.base),
        "run_id": "one",
        "settings": to_json(settings),
        "data": "",
        "weights_dir": "",
    }
    Pusher.test_call(
        model=model,
        decision=decision,
        serving_report=report,
        statistics=statistics,
        evaluation=evaluation,
        ingest=ingest,
        pushed=pushed,
        retrain=retrain,
        run_date="",
        schedule_time="",
        model_name="catbreeds",
        data_source="",
        data_licence="",
        contact="",
        **parameters,
    )
    assert read_json(pushed.uri, "push.json")["version"] == 2
    registry.require_servable(2)
    written = remote.bucket / model.uri.removeprefix(SCHEME) / "Format-Serving"
    for file in filter(Path.is_file, written.rglob("*")):
        assert (registry.path(2) / file.relative_to(written)).read_bytes() == file.read_bytes()
    assert (registry.path(2) / "assets.extra" / "train_statistics.pb").stat().st_size
    reference = (registry.path(2) / REFERENCE_PHOTOS_FILE).read_text().splitlines()
    assert len(reference) == len(read_outcomes(evaluation.uri))

    sources = {
        "ingest": ingest,
        "verdict": verdict,
        "examples": examples,
        "comparison": comparison,
        "winner": model,
        "evaluation": evaluation,
        "decision": decision,
        "pushed": pushed,
        "training_0": remote.input(ModelRun, "Trainer-resnet50", "model_run"),
        "trials_0": remote.input(TunerResults, "Tuner-resnet50", "tuner_results"),
    }
    page, summary = remote.output(artifacts.HTML), remote.output(artifacts.Markdown)
    run_report.Executor().Do(
        {key: [value] for key, value in sources.items()},
        {"page": [page], "summary": [summary]},
        parameters | {"candidates": '["resnet50"]'},
    )
    text = (remote.bucket / summary.uri.removeprefix(SCHEME)).read_text()
    assert "Passed: pushed as version 2." in text
    report_page = (remote.bucket / page.uri.removeprefix(SCHEME)).read_text()
    assert "Learning curves" in report_page or "Final training" in report_page
    assert "tensorboard --logdir" not in report_page  # its reader has other artifacts in the workdir, or none


def test_a_search_writes_its_results_and_an_event_file_of_each_trial_to_a_bucket(small, remote, tmp_path):
    space = load("demo", (*small.settings, "tuner.kinds=[logistic_regression]")).tuner.model_dump(mode="json")
    outputs = {"best_hyperparameters": remote.output(HyperParameters), "tuner_results": remote.output(TunerResults)}
    examples, graph = Examples(), TransformGraph()
    examples.uri = str(small.artifact("EmbeddingGen-resnet50", "embeddings"))
    examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
    graph.uri = str(small.artifact("Transform-resnet50", "transform_graph"))
    tuner.Executor(BaseExecutor.Context(tmp_dir=str(tmp_path), unique_id="1")).Do(
        {"examples": [examples], "transform_graph": [graph]},
        {key: [artifact] for key, artifact in outputs.items()},
        {
            "tuner_fn": "pipeline.modules.tuning.tuner_fn",
            "train_args": "{}",
            "eval_args": "{}",
            "custom_config": json.dumps({"candidate": "resnet50", "tuner": space, "batch_size": 16, "seed": 0}),
        },
    )
    folder = remote.bucket / outputs["tuner_results"].uri.removeprefix(SCHEME)
    trials = {f"{row['kind']}-{row['trial_id']}" for row in json.loads((folder / "tuner_results.json").read_text())}
    assert len(trials) == len(space["blocks"]) * len(space["l2"])
    assert {file.parent.name for file in folder.glob("*/events.out.tfevents.*") if file.stat().st_size} == trials


def test_weights_in_a_bucket_are_found(bucket, tmp_path):
    (bucket / "weights").mkdir()
    (bucket / "weights" / "resnet50_notop.weights.h5").write_bytes(b"weights")
    (tmp_path / "local").write_bytes(b"weights")
    assert file_digest(find_weights("resnet50", f"{SCHEME}weights")) == file_digest(tmp_path / "local")


@pytest.mark.parametrize("base", ["gs://models/catbreeds", "s3://models/catbreeds", f"{SCHEME}catbreeds"])
def test_a_registry_in_a_bucket_is_rejected_with_a_message(base, bucket):
    with pytest.raises(RegistryError, match=f"{base}: the registry of pushed models must be a folder"):
        Registry(base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compile", "--set", "kubeflow.registry=gs://models/serving"), "kubeflow.registry: "),
        (("run", "--data", ".", "--workdir", "gs://models/work"), "workdir: "),
        (("submit", "kfp_specs/smoke.yaml", "--param", "registry=gs://models/serving"), "--param registry=gs://models"),
        (
            ("schedule", "--cron", "0 3 * * 1", "--param", "registry=gs://models/serving"),
            "--param registry=gs://models",
        ),
    ],
)
def test_commands_reject_a_registry_in_a_bucket_before_they_start(arguments, message, tmp_path):
    arguments = [*arguments, *(("--output", tmp_path / "specs") if arguments[0] == "compile" else ())]
    done = catbreeds(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "mount the bucket" in done.stderr
    assert "Traceback" not in done.stderr
