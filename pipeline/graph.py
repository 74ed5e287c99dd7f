"""The graph of the pipeline, built by one function for all runners. `RunContext` has what differs between them.

The graph has five parts: ingestion (`_ingestion`), one branch per candidate (`_candidate` for a backbone, `_ensemble`
for all of them), the selection of the best candidate (`_selector`), the release of the winner (`_release`) and, on a
cluster, the report (`_run_report`).
"""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components import ExampleValidator, StatisticsGen, Trainer, Transform
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.experimental.conditionals.conditional import Cond
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import trainer_pb2, transform_pb2
from tfx.types import Channel

from components.candidates.architectures import ENSEMBLE
from components.candidates.backbone import Backbone
from components.candidates.backbone_selector import BackboneSelector
from components.candidates.embedding_gen import EmbeddingGen
from components.candidates.embedding_join import EmbeddingJoin
from components.candidates.evaluator import Evaluator
from components.candidates.retrain_gate import RetrainGate
from components.candidates.tuner import Tuner
from components.ingestion.data_gate import DataGate
from components.ingestion.image_example_gen import ImageExampleGen
from components.ingestion.import_schema_gen import ImportSchemaGen
from components.release.champion_model import ChampionModel
from components.release.gate_passed import GatePassed
from components.release.model_gate import ModelGate
from components.release.pusher import Pusher
from components.release.rollout import Rollout
from components.release.serving_check import ServingCheck
from components.reporting.run_report import RunReport
from pipeline.datasets.schema_file import read_schema_text
from pipeline.node_ids import branch_node_id
from pipeline.run_context import RunContext, photos_schema
from pipeline.settings import ROOT, Settings
from serving.model_files import DEFAULT_SIGNATURE, EXPLAIN_SIGNATURE

if StatisticsGen is None:
    # TFX replaces components that it cannot import with None.
    raise ImportError("TFX cannot import tensorflow_data_validation; run `make setup` to install its dependencies")

if TYPE_CHECKING:
    from tensorflow_data_validation import StatsOptions

SERVING_CHECK_PHOTOS = 4
_EMBEDDINGS_SCHEMA = ROOT / "schemas" / "embeddings" / "schema.pbtxt"
# Modules that determine a trained head, and those that determine the whole model.
_HEAD_MODULES = (
    "components.candidates.backbone",
    "components.candidates.embedding_gen",
    "components.candidates.embedding_join",
    "components.candidates.served_model",
    "pipeline.modules.preprocessing",
    "pipeline.modules.training",
)
_MODEL_MODULES = (
    *_HEAD_MODULES,
    "components.ingestion.image_example_gen",
    "pipeline.modules.tuning",
    "components.candidates.backbone_selector",
)
# Settings that determine the whole model, except those of the backbones.
_MODEL_SETTINGS = ("ensemble", "seed", "top_k", "split", "ingest", "tuner", "trainer", "explain", "selection")


class _Ingestion(NamedTuple):
    """Nodes that turn photos into validated examples."""

    examples: BaseNode
    statistics: BaseNode
    schema: BaseNode
    validator: BaseNode
    data_gate: BaseNode


class _Candidate(NamedTuple):
    """Nodes of one candidate's branch.

    Attributes:
        backbone: Its backbone; None for the ensemble, which uses the backbones of all other candidates.
        embeddings: EmbeddingGen, or EmbeddingJoin for the ensemble.
    """

    backbone: BaseNode | None
    embeddings: BaseNode
    transform: BaseNode
    tuner: BaseNode
    trainer: BaseNode
    evaluator: BaseNode

    def channels(self) -> dict[str, Channel]:
        """Outputs of the branch that BackboneSelector reads."""
        return ({"backbone": self.backbone.outputs["model"]} if self.backbone else {}) | {
            "model": self.trainer.outputs["model"],
            "evaluation": self.evaluator.outputs["evaluation"],
            "tuner_results": self.tuner.outputs["tuner_results"],
            "model_run": self.trainer.outputs["model_run"],
            "embeddings": self.embeddings.outputs["embeddings"],
        }


def create_pipeline(settings: Settings, context: RunContext, metadata_connection_config=None) -> Pipeline:
    """Build the whole graph, from photos to a pushed model.

    Args:
        settings: Settings of the run.
        context: Values that depend on the runner.
        metadata_connection_config: Connection to ML Metadata, for runners that need one.

    Raises:
        WeightsError: If `weights_dir` has no weights for a backbone.
    """
    ingestion = _ingestion(settings, context)
    retrain_gate = _retrain_gate(settings, context, ingestion) if context.in_cluster else None
    candidates = {
        backbone: _candidate(settings, context, backbone, ingestion, retrain_gate)
        for backbone in settings.backbone_names
    }
    if ENSEMBLE in settings.candidate_names:
        candidates[ENSEMBLE] = _ensemble(settings, context, candidates)
    selector = _selector(settings, context, candidates, ingestion)
    release = _release(settings, context, selector, ingestion, retrain_gate)

    nodes = [
        *ingestion,
        *(node for candidate in candidates.values() for node in candidate if node),
        selector,
        *release.values(),
    ]
    if context.in_cluster:
        report = _run_report(context, candidates, selector, ingestion, release)
        nodes += [retrain_gate, report, _gate_passed(release["gate"])]
    return _pipeline(settings, nodes, metadata_connection_config)


def create_ingestion(settings: Settings, context: RunContext, metadata_connection_config=None) -> Pipeline:
    """Build a graph with only the first component; a full run in the same workdir reuses its result from the cache."""
    return _pipeline(settings, [_example_gen(settings, context)], metadata_connection_config)


def _pipeline(settings: Settings, nodes: list[BaseNode], metadata_connection_config) -> Pipeline:
    return Pipeline(
        pipeline_name=settings.model_name,
        pipeline_root=str(Path(settings.workdir).resolve() / "artifacts"),
        components=nodes,
        enable_cache=True,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=settings.beam.pipeline_args(),
    )


def _example_gen(settings: Settings, context: RunContext) -> BaseNode:
    return ImageExampleGen(
        data=context.data,
        data_digest=context.data_digest,
        code_digest=context.code_digest("components.ingestion.image_example_gen"),
        train=settings.split.train,
        eval=settings.split.eval,
        seed=settings.split.seed,
        max_side=settings.ingest.max_side,
        near_duplicate_bits=settings.ingest.near_duplicate_bits,
    )


def _ingestion(settings: Settings, context: RunContext) -> _Ingestion:
    """Read the photos and validate them; DataGate stops the run if the data is invalid."""
    examples = _example_gen(settings, context)
    statistics = StatisticsGen(examples=examples.outputs["examples"], stats_options=_statistics_options())
    schema = ImportSchemaGen(text=read_schema_text(photos_schema(settings)), schema_file=context.schema_file)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    data_gate = DataGate(
        anomalies=validator.outputs["anomalies"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        report=examples.outputs["report"],
        schema_file=context.schema_file,
        registry=context.registry,
        stable=context.stable,
        max_bad_share=settings.ingest.max_unusable_share,
        min_photos_per_breed=settings.ingest.min_photos_per_breed,
        code_digest=context.code_digest("components.ingestion.data_gate"),
    )
    return _Ingestion(examples, statistics, schema, validator, data_gate)


def _statistics_options() -> "StatsOptions":
    """Declare the photos as images: the statistics of text count each value, which would keep all photos in memory."""
    from tensorflow_data_validation import StatsOptions

    feature = schema_pb2.Feature(name="image_bytes", type=schema_pb2.BYTES, image_domain=schema_pb2.ImageDomain())
    return StatsOptions(schema=schema_pb2.Schema(feature=[feature]))


def _retrain_gate(settings: Settings, context: RunContext, ingestion: _Ingestion) -> BaseNode:
    """Skip training if the registry already has a model with the same inputs."""
    return RetrainGate(
        ingest=ingestion.examples.outputs["report"],
        registry=context.registry,
        backbones=json.dumps([_network(settings, backbone) for backbone in settings.backbone_names]),
        weights=settings.weights,
        weights_dir=context.weights_dir,
        settings=json.dumps(settings.model_dump(mode="json", include=set(_MODEL_SETTINGS)), sort_keys=True),
        modules=" ".join(_MODEL_MODULES),
    )


def _network(settings: Settings, backbone: str) -> dict[str, Any]:
    """Parameters of a backbone's network; `model_file` is "" if it is a built-in one."""
    file = settings.model_files.get(backbone)
    return {
        "name": backbone,
        "image_size": settings.image_size_of(backbone),
        "precision": settings.precision,
        "model_file": os.path.abspath(file.model) if file else "",
        "layers": list(file.layers) if file else [],
        "licence": file.licence if file else "",
    }


def _candidate(
    settings: Settings, context: RunContext, backbone: str, ingestion: _Ingestion, retrain_gate: BaseNode | None
) -> _Candidate:
    """Load a backbone, embed the photos, and tune, train and evaluate a head on the embeddings."""
    parameters = _network(settings, backbone)
    # All other nodes of the branch depend on the backbone, so skipping it skips the branch.
    with _if_retraining(retrain_gate):
        network = Backbone(
            **parameters | {"layers": json.dumps(parameters["layers"])},
            architecture=backbone,
            weights="file" if parameters["model_file"] else settings.weights,
            weights_dir=context.weights_dir,
            weights_digest=context.weights_digest(backbone),
            seed=settings.seed,
            code_digest=context.code_digest("components.candidates.backbone"),
        )
    embeddings = EmbeddingGen(
        examples=ingestion.examples.outputs["examples"],
        backbone=network.outputs["model"],
        schema_template=_EMBEDDINGS_SCHEMA.read_text(encoding="utf-8"),
        batch=settings.beam.embedding_batch_size,
        code_digest=context.code_digest("components.candidates.embedding_gen"),
    )
    # Nothing is embedded before the data is validated. On a cluster the backbone waits too, because its task costs
    # money; on one machine it loads while the data is validated.
    embeddings.add_upstream_node(ingestion.data_gate)
    if context.in_cluster:
        network.add_upstream_node(ingestion.data_gate)
    return _branch(
        settings,
        context,
        backbone,
        network.with_id(branch_node_id("Backbone", backbone)),
        embeddings.with_id(branch_node_id("EmbeddingGen", backbone)),
    )


def _ensemble(settings: Settings, context: RunContext, candidates: dict[str, _Candidate]) -> _Candidate:
    """Join the embeddings of all candidates; tune, train and evaluate a head on them like that of a backbone."""
    join = EmbeddingJoin(
        [candidate.embeddings.outputs for candidate in candidates.values()],
        code_digest=context.code_digest("components.candidates.embedding_join"),
    )
    return _branch(settings, context, ENSEMBLE, None, join)


def _branch(
    settings: Settings, context: RunContext, name: str, backbone: BaseNode | None, embeddings: BaseNode
) -> _Candidate:
    """Tune and train a head on the embeddings of a candidate, and evaluate the head on the eval split."""
    transform = Transform(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        preprocessing_fn="pipeline.modules.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"]),
        materialize=False,  # Tuner and Trainer apply the graph; a second copy of all embeddings would be as large
        disable_statistics=True,
        disable_analyzer_cache=True,
        custom_config={"code_digest": context.code_digest("pipeline.modules.preprocessing")},
    )
    training_inputs: dict[str, Any] = {
        "examples": embeddings.outputs["embeddings"],
        "transform_graph": transform.outputs["transform_graph"],
        "train_args": trainer_pb2.TrainArgs(),
        "eval_args": trainer_pb2.EvalArgs(),
    }
    tuner = Tuner(
        tuner_fn="pipeline.modules.tuning.tuner_fn",
        custom_config={
            "candidate": name,
            "tuner": settings.tuner.model_dump(mode="json"),
            "batch_size": settings.trainer.batch_size,
            "seed": settings.seed,
            "code_digest": context.code_digest("components.candidates.tuner", "pipeline.modules.tuning"),
        },
        **training_inputs,
    )
    trainer = Trainer(
        run_fn="pipeline.modules.training.run_fn",
        hyperparameters=tuner.outputs["best_hyperparameters"],
        custom_config={
            "candidate": name,
            "trainer": settings.trainer.model_dump(mode="json"),
            "explain": settings.explain.model_dump(mode="json"),
            "seed": settings.seed,
            "modules": _HEAD_MODULES,
            "code_digest": context.code_digest(*_HEAD_MODULES),
        },
        **training_inputs,
    )
    evaluator = Evaluator(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        model=trainer.outputs["model"],
        split="eval",
        signature="classify_embedding",
        require_precision=0,  # a head is computed in float32
        batch=settings.beam.embedding_batch_size,
        code_digest=context.code_digest("components.candidates.evaluator"),
    )
    return _Candidate(
        backbone=backbone,
        embeddings=embeddings,
        transform=transform.with_id(branch_node_id("Transform", name)),
        tuner=tuner.with_id(branch_node_id("Tuner", name)),
        trainer=trainer.with_id(branch_node_id("Trainer", name)),
        evaluator=evaluator.with_id(branch_node_id("Evaluator", name)),
    )


def _if_retraining(retrain_gate: BaseNode | None) -> contextlib.AbstractContextManager:
    """Return a context whose nodes run only if RetrainGate decides to train; without the gate, they always run."""
    if not retrain_gate:
        return contextlib.nullcontext()
    return Cond(retrain_gate.outputs["decision"].future()[0].custom_property("retrain") == 1)


def _selector(
    settings: Settings, context: RunContext, candidates: dict[str, _Candidate], ingestion: _Ingestion
) -> BaseNode:
    """Select the best candidate by its out-of-fold predictions."""
    return BackboneSelector(
        {name: candidate.channels() for name, candidate in candidates.items()},
        report=ingestion.examples.outputs["report"],
        price=settings.selection.price,
        price_unit=settings.selection.price_unit,
        top_k=settings.top_k,
        model_name=settings.model_name,
        code_digest=context.code_digest("components.candidates.backbone_selector"),
    )


def _release(
    settings: Settings, context: RunContext, selector: BaseNode, ingestion: _Ingestion, retrain_gate: BaseNode | None
) -> dict[str, BaseNode]:
    """Compare the winner with the champion on the test split, and push it if it passes the gate and can be served."""
    champion = ChampionModel(
        candidate=selector.outputs["winner"],
        registry=context.registry,
        stable=context.stable,
        code_digest=context.code_digest("components.release.champion_model"),
    )
    # Two Evaluator nodes, because each model has its own class indices, and because a new champion must not cause the
    # candidate to be evaluated again.
    evaluators = {
        node_id: Evaluator(
            examples=ingestion.examples.outputs["examples"],
            schema=ingestion.schema.outputs["schema"],
            model=model,
            split="test",
            signature=signature,
            # The champion may come from a machine with another CPU.
            require_precision=int(node_id == "Evaluator-gate"),
            batch=settings.beam.embedding_batch_size,
            code_digest=context.code_digest("components.candidates.evaluator"),
        ).with_id(node_id)
        for node_id, model, signature in (
            ("Evaluator-gate", selector.outputs["winner"], EXPLAIN_SIGNATURE),
            # A champion of an earlier release has only this signature. Both give the same probabilities.
            ("Evaluator-champion", champion.outputs["champion"], DEFAULT_SIGNATURE),
        )
    }
    gate = ModelGate(
        candidate=selector.outputs["winner"],
        candidate_evaluation=evaluators["Evaluator-gate"].outputs["evaluation"],
        champion=champion.outputs["champion"],
        champion_evaluation=evaluators["Evaluator-champion"].outputs["evaluation"],
        ingest=ingestion.examples.outputs["report"],
        code_digest=context.code_digest("components.release.model_gate"),
        **context.gate,
    )
    serving_check = ServingCheck(
        model=selector.outputs["winner"],
        blessing=gate.outputs["blessing"],
        examples=ingestion.examples.outputs["examples"],
        evaluation=evaluators["Evaluator-gate"].outputs["evaluation"],
        photos=SERVING_CHECK_PHOTOS,
        code_digest=context.code_digest("components.release.serving_check", "serving.local.saved_model_process"),
    )
    pusher = Pusher(
        model=selector.outputs["winner"],
        decision=gate.outputs["decision"],
        serving_report=serving_check.outputs["report"],
        statistics=ingestion.statistics.outputs["statistics"],
        evaluation=evaluators["Evaluator-gate"].outputs["evaluation"],
        ingest=ingestion.examples.outputs["report"],
        registry=context.registry,
        run_id=context.run_id,
        run_date=context.run_date,
        schedule_time=context.schedule_time,
        settings=context.settings,
        data=context.data,
        weights_dir=context.weights_dir,
        model_name=settings.model_name,
        **settings.model_card.model_dump(),
        **({"retrain": retrain_gate.outputs["decision"]} if retrain_gate else {}),
    )
    nodes = {**evaluators, "champion": champion, "gate": gate, "serving_check": serving_check, "pusher": pusher}
    if settings.rollout.target != "off":
        nodes["rollout"] = Rollout(
            pushed=pusher.outputs["pushed"],
            registry=context.registry,
            run_id=context.run_id,
            namespace=settings.rollout.namespace if settings.rollout.target == "cluster" else "",
            models=settings.rollout.models_dir,
            share=settings.rollout.canary_share,
            loaded=settings.rollout.loaded_versions,
            load_seconds=settings.rollout.load_seconds,
        )
    return nodes


def _run_report(
    context: RunContext,
    candidates: dict[str, _Candidate],
    selector: BaseNode,
    ingestion: _Ingestion,
    release: dict[str, BaseNode],
) -> BaseNode:
    """Write the report of the run, which the UI of Kubeflow Pipelines shows."""
    return RunReport(
        {
            name: {
                "training": candidate.trainer.outputs["model_run"],
                "trials": candidate.tuner.outputs["tuner_results"],
            }
            for name, candidate in candidates.items()
        },
        inputs={
            "ingest": ingestion.examples.outputs["report"],
            "verdict": ingestion.data_gate.outputs["verdict"],
            "examples": ingestion.examples.outputs["examples"],
            "comparison": selector.outputs["comparison"],
            "winner": selector.outputs["winner"],
            "evaluation": release["Evaluator-gate"].outputs["evaluation"],
            "decision": release["gate"].outputs["decision"],
            "pushed": release["pusher"].outputs["pushed"],
        },
        parameters={
            "registry": context.registry,
            "run_id": context.run_id,
            "settings": context.settings,
            "data": context.data,
            "weights_dir": context.weights_dir,
        },
    )


def _gate_passed(gate: BaseNode) -> BaseNode:
    """Add a task that is skipped if the gate rejects the candidate, so that the task list of the run shows it."""
    with Cond(gate.outputs["decision"].future()[0].custom_property("refused") == 0):
        return GatePassed()
