"""The pipeline's graph. One function for every runner; what differs between them is in their `RunContext`."""

import contextlib
import json
from pathlib import Path
from typing import Any

from tfx.components import ExampleValidator, StatisticsGen, Trainer, Transform, Tuner
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.experimental.conditionals.conditional import Cond
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import trainer_pb2, transform_pb2

from components.candidates.backbone import Backbone
from components.candidates.backbone_selector import BackboneSelector
from components.candidates.embedding_gen import EmbeddingGen
from components.candidates.evaluator import Evaluator
from components.ingestion.data_gate import DataGate
from components.ingestion.image_example_gen import ImageExampleGen
from components.ingestion.import_schema_gen import ImportSchemaGen
from components.ingestion.retrain_gate import RetrainGate
from components.release.champion_model import ChampionModel
from components.release.gate_passed import GatePassed
from components.release.model_gate import ModelGate
from components.release.pusher import Pusher
from components.release.rollout import Rollout
from components.release.serving_check import ServingCheck
from components.reporting.run_report import RunReport
from pipeline.run_context import RunContext, photos_schema
from pipeline.settings import ROOT, Settings

if StatisticsGen is None:
    # TFX hides a failed import behind None.
    raise ImportError("TFX cannot import tensorflow_data_validation; run `make setup` to install what it needs")

SERVING_CHECK_PHOTOS = 4
_EMBEDDINGS_SCHEMA = ROOT / "schemas" / "embeddings" / "schema.pbtxt"
# What decides on a trained head, and what decides on a whole model.
_HEAD_MODULES = (
    "components.candidates.embedding_gen",
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
_MODEL_SETTINGS = ("image_size", "seed", "top_k", "split", "ingest", "tuner", "trainer", "selection")
_ALWAYS = contextlib.nullcontext()


def create_pipeline(settings: Settings, context: RunContext, metadata_connection_config=None) -> Pipeline:
    """The whole graph, from photos to a pushed model.

    Args:
        settings: of the run.
        context: where it runs.
        metadata_connection_config: of ML Metadata, where the runner needs one.

    Raises:
        WeightsError: `weights_dir` has no weights for a backbone.
    """
    nodes = _data_nodes(settings, context)
    examples, statistics, schema, _, data_gate = nodes
    retrain = _retrain_gate(settings, context, examples) if context.in_cluster else None
    nodes += [retrain] if retrain else []
    candidates = {}
    for backbone in settings.backbones:
        branch = _candidate_nodes(settings, context, backbone, examples, data_gate, retrain)
        nodes += branch.values()
        candidates[backbone] = {
            "backbone": branch["backbone"].outputs["model"],
            "model": branch["trainer"].outputs["model"],
            "evaluation": branch["evaluator"].outputs["evaluation"],
            "tuner_results": branch["tuner"].outputs["tuner_results"],
            "model_run": branch["trainer"].outputs["model_run"],
            "embeddings": branch["embeddings"].outputs["embeddings"],
        }
    selector = BackboneSelector(
        candidates,
        report=examples.outputs["report"],
        rule=settings.selection.rule,
        top_k=settings.top_k,
        model_name=settings.model_name,
        code_digest=context.code_digest("components.candidates.backbone_selector"),
    )
    admission = _admission_nodes(settings, context, selector, examples, statistics, schema, retrain)
    nodes += [selector, *admission.values()]
    if context.in_cluster:
        nodes.append(_run_report(context, candidates, selector, examples, data_gate, admission))
        with Cond(admission["gate"].outputs["decision"].future()[0].custom_property("refused") == 0):
            nodes.append(GatePassed())
    return _pipeline(settings, nodes, metadata_connection_config)


def create_ingestion(settings: Settings, context: RunContext, metadata_connection_config=None) -> Pipeline:
    """The first component alone; a whole run in the same workdir finds its result in the cache."""
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


def _data_nodes(settings: Settings, context: RunContext) -> list[BaseNode]:
    """Photos to verified examples; the last node stops the run when the data is wrong."""
    examples = _example_gen(settings, context)
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = ImportSchemaGen(text=photos_schema(settings).read_text(encoding="utf-8"), schema_file=context.schema_file)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    gate = DataGate(
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
    return [examples, statistics, schema, validator, gate]


def _retrain_gate(settings: Settings, context: RunContext, examples: BaseNode) -> BaseNode:
    """Whether a run is worth its cost."""
    return RetrainGate(
        ingest=examples.outputs["report"],
        registry=context.registry,
        backbones=" ".join(settings.backbones),
        weights=settings.weights,
        weights_dir=context.weights_dir,
        settings=json.dumps(settings.model_dump(mode="json", include=set(_MODEL_SETTINGS)), sort_keys=True),
        modules=" ".join(_MODEL_MODULES),
    )


def _candidate_nodes(
    settings: Settings,
    context: RunContext,
    backbone: str,
    examples: BaseNode,
    data_gate: BaseNode,
    retrain: BaseNode | None,
) -> dict[str, BaseNode]:
    """The branch of one backbone, from its weights to a model scored on eval."""
    # Everything of a branch rests on its backbone: where that is skipped, nothing else runs.
    with Cond(retrain.outputs["decision"].future()[0].custom_property("retrain") == 1) if retrain else _ALWAYS:
        network = Backbone(
            architecture=backbone,
            weights=settings.weights,
            weights_dir=context.weights_dir,
            weights_digest=context.weights_digest(backbone),
            image_size=settings.image_size,
            seed=settings.seed,
            code_digest=context.code_digest("components.candidates.backbone"),
        )
    embeddings = EmbeddingGen(
        examples=examples.outputs["examples"],
        backbone=network.outputs["model"],
        schema_template=_EMBEDDINGS_SCHEMA.read_text(encoding="utf-8"),
        batch=settings.beam.embedding_batch_size,
        code_digest=context.code_digest("components.candidates.embedding_gen"),
    )
    # Wrong data leaves no embedding. On a cluster it also costs no backbone; on one machine there is nothing else to do
    # while the data is checked.
    embeddings.add_upstream_node(data_gate)
    if context.in_cluster:
        network.add_upstream_node(data_gate)
    transform = Transform(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        preprocessing_fn="pipeline.modules.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        disable_statistics=True,
        custom_config={"code_digest": context.code_digest("pipeline.modules.preprocessing")},
    )
    learned: dict[str, Any] = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "train_args": trainer_pb2.TrainArgs(),
        "eval_args": trainer_pb2.EvalArgs(),
    }
    tuner = Tuner(
        tuner_fn="pipeline.modules.tuning.tuner_fn",
        custom_config={
            "tuner": settings.tuner.model_dump(mode="json"),
            "batch_size": settings.trainer.batch_size,
            "seed": settings.seed,
            "code_digest": context.code_digest("pipeline.modules.tuning"),
        },
        **learned,
    )
    trainer = Trainer(
        run_fn="pipeline.modules.training.run_fn",
        hyperparameters=tuner.outputs["best_hyperparameters"],
        custom_config={
            "trainer": settings.trainer.model_dump(mode="json"),
            "seed": settings.seed,
            "modules": _HEAD_MODULES,
            "code_digest": context.code_digest(*_HEAD_MODULES),
        },
        **learned,
    )
    evaluator = Evaluator(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        model=trainer.outputs["model"],
        split="eval",
        signature="classify_embedding",
        code_digest=context.code_digest("components.candidates.evaluator"),
    )
    return {
        "backbone": network.with_id(f"Backbone-{backbone}"),
        "embeddings": embeddings.with_id(f"EmbeddingGen-{backbone}"),
        "transform": transform.with_id(f"Transform-{backbone}"),
        "tuner": tuner.with_id(f"Tuner-{backbone}"),
        "trainer": trainer.with_id(f"Trainer-{backbone}"),
        "evaluator": evaluator.with_id(f"Evaluator-{backbone}"),
    }


def _admission_nodes(
    settings: Settings,
    context: RunContext,
    selector: BaseNode,
    examples: BaseNode,
    statistics: BaseNode,
    schema: BaseNode,
    retrain: BaseNode | None,
) -> dict[str, BaseNode]:
    """The winner against the model in service, on the test photos that nothing has seen yet; then the push."""
    champion = ChampionModel(
        candidate=selector.outputs["winner"],
        registry=context.registry,
        stable=context.stable,
        code_digest=context.code_digest("components.release.champion_model"),
    )
    # Two nodes, not one: each model numbers breeds by itself, and a new champion does not re-measure the candidate.
    measures = {
        node_id: Evaluator(
            examples=examples.outputs["examples"],
            schema=schema.outputs["schema"],
            model=model,
            split="test",
            signature="serving_default",
            code_digest=context.code_digest("components.candidates.evaluator"),
        ).with_id(node_id)
        for node_id, model in {
            "Evaluator-gate": selector.outputs["winner"],
            "Evaluator-champion": champion.outputs["champion"],
        }.items()
    }
    gate = ModelGate(
        candidate=selector.outputs["winner"],
        candidate_evaluation=measures["Evaluator-gate"].outputs["evaluation"],
        champion=champion.outputs["champion"],
        champion_evaluation=measures["Evaluator-champion"].outputs["evaluation"],
        ingest=examples.outputs["report"],
        code_digest=context.code_digest("components.release.model_gate"),
        **context.gate,
    )
    check = ServingCheck(
        model=selector.outputs["winner"],
        blessing=gate.outputs["blessing"],
        examples=examples.outputs["examples"],
        evaluation=measures["Evaluator-gate"].outputs["evaluation"],
        photos=SERVING_CHECK_PHOTOS,
        code_digest=context.code_digest("components.release.serving_check", "serving.local.saved_model_process"),
    )
    pusher = Pusher(
        model=selector.outputs["winner"],
        decision=gate.outputs["decision"],
        serving_report=check.outputs["report"],
        statistics=statistics.outputs["statistics"],
        evaluation=measures["Evaluator-gate"].outputs["evaluation"],
        ingest=examples.outputs["report"],
        registry=context.registry,
        run_id=context.run_id,
        run_date=context.run_date,
        schedule_time=context.schedule_time,
        settings=context.settings,
        data=context.data,
        weights_dir=context.weights_dir,
        model_name=settings.model_name,
        **settings.model_card.model_dump(),
        **({"retrain": retrain.outputs["decision"]} if retrain else {}),
    )
    nodes = {**measures, "champion": champion, "gate": gate, "check": check, "pusher": pusher}
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
    candidates: dict[str, dict[str, Any]],
    selector: BaseNode,
    examples: BaseNode,
    data_gate: BaseNode,
    admission: dict[str, BaseNode],
) -> BaseNode:
    """What people read of the run."""
    return RunReport(
        training={backbone: channels["model_run"] for backbone, channels in candidates.items()},
        trials={backbone: channels["tuner_results"] for backbone, channels in candidates.items()},
        inputs={
            "ingest": examples.outputs["report"],
            "verdict": data_gate.outputs["verdict"],
            "examples": examples.outputs["examples"],
            "comparison": selector.outputs["comparison"],
            "winner": selector.outputs["winner"],
            "evaluation": admission["Evaluator-gate"].outputs["evaluation"],
            "decision": admission["gate"].outputs["decision"],
            "pushed": admission["pusher"].outputs["pushed"],
        },
        parameters={
            "registry": context.registry,
            "run_id": context.run_id,
            "settings": context.settings,
            "data": context.data,
            "weights_dir": context.weights_dir,
        },
    )
