"""The pipeline's graph. One function for every runner; what differs between them is configuration."""

from pathlib import Path
from typing import Any

from tfx.components import ExampleValidator, StatisticsGen, Trainer, Transform, Tuner
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import trainer_pb2, transform_pb2

from components.backbone import Backbone, find_weights
from components.backbone_selector import BackboneSelector
from components.champion_model import ChampionModel, stable_identity
from components.data_gate import DataGate
from components.embedding_gen import EmbeddingGen
from components.evaluator import Evaluator
from components.image_example_gen import ImageExampleGen
from components.import_schema_gen import ImportSchemaGen
from components.model_gate import ModelGate
from components.photo_source import open_source
from components.provenance import code_digest, file_digest, git_commit
from components.pusher import Pusher
from components.serving_check import ServingCheck
from pipeline.settings import ROOT, Settings, to_yaml
from serving.registry import Registry

if StatisticsGen is None:
    # TFX hides a failed import behind None.
    raise ImportError("TFX cannot import tensorflow_data_validation; run `make setup` to install what it needs")

SERVING_CHECK_PHOTOS = 4
_EMBEDDINGS_SCHEMA = ROOT / "schemas" / "embeddings" / "schema.pbtxt"


def photos_schema(settings: Settings) -> Path:
    """The file that says what photos must look like."""
    return Path(settings.photos_schema or ROOT / "schemas" / "photos").resolve() / "schema.pbtxt"


def create_pipeline(settings: Settings, run_id: str, metadata_connection_config=None) -> Pipeline:
    """The whole graph, from photos to a pushed model.

    Args:
        settings: `data` must be given.
        run_id: differs in each run.
        metadata_connection_config: of ML Metadata, where the runner needs one.

    Raises:
        DataError: there are no photos in `data`.
        WeightsError: `weights_dir` has no weights for a backbone.
    """
    nodes = _data_nodes(settings)
    examples, statistics, schema, _, data_gate = nodes
    candidates = {}
    for backbone in settings.backbones:
        branch = _candidate_nodes(settings, backbone, examples, data_gate)
        nodes += branch.values()
        candidates[backbone] = {
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
        code=code_digest("components.backbone_selector"),
    )
    nodes += [selector, *_admission_nodes(settings, run_id, selector, examples, statistics, schema)]
    return _pipeline(settings, nodes, metadata_connection_config)


def create_ingestion(settings: Settings, metadata_connection_config=None) -> Pipeline:
    """The first component alone; a whole run in the same workdir finds its result in the cache.

    Raises:
        DataError: there are no photos in `data`.
    """
    return _pipeline(settings, [_example_gen(settings)], metadata_connection_config)


def _pipeline(settings: Settings, nodes: list[BaseNode], metadata_connection_config) -> Pipeline:
    return Pipeline(
        pipeline_name=settings.model_name,
        pipeline_root=str(Path(settings.workdir).resolve() / "artifacts"),
        components=nodes,
        enable_cache=True,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=settings.beam.pipeline_args(),
    )


def _example_gen(settings: Settings) -> BaseNode:
    data = settings.data if "://" in settings.data else str(Path(settings.data).resolve())
    return ImageExampleGen(
        data=data,
        data_digest=open_source(data).digest(),
        code=code_digest("components.image_example_gen"),
        train=settings.split.train,
        eval=settings.split.eval,
        seed=settings.split.seed,
        max_side=settings.ingest.max_side,
        near_duplicate_bits=settings.ingest.near_duplicate_bits,
    )


def _data_nodes(settings: Settings) -> list[BaseNode]:
    """Photos to verified examples; the last node stops the run when the data is wrong."""
    examples = _example_gen(settings)
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema_file = str(photos_schema(settings))
    schema = ImportSchemaGen(schema_file)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    gate = DataGate(
        anomalies=validator.outputs["anomalies"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        report=examples.outputs["report"],
        schema_file=schema_file,
        registry=str(settings.registry),
        stable=stable_identity(Registry(settings.registry)),
        max_bad_share=settings.ingest.max_bad_share,
        min_photos_per_breed=settings.ingest.min_photos_per_breed,
        code=code_digest("components.data_gate"),
    )
    return [examples, statistics, schema, validator, gate]


def _candidate_nodes(settings: Settings, backbone: str, examples: BaseNode, data_gate: BaseNode) -> dict[str, BaseNode]:
    """The branch of one backbone, from its weights to a model scored on eval."""
    weights, weights_digest = _weights(settings, backbone)
    network = Backbone(
        architecture=backbone,
        weights=weights,
        weights_digest=weights_digest,
        image_size=settings.image_size,
        seed=settings.seed,
        code=code_digest("components.backbone"),
    )
    embeddings = EmbeddingGen(
        examples=examples.outputs["examples"],
        backbone=network.outputs["model"],
        schema_template=_EMBEDDINGS_SCHEMA.read_text(encoding="utf-8"),
        batch=settings.beam.embedding_batch,
        code=code_digest("components.embedding_gen"),
    )
    # Wrong data leaves no embedding, and costs no backbone.
    network.add_upstream_node(data_gate)
    embeddings.add_upstream_node(data_gate)
    transform = Transform(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        preprocessing_fn="pipeline.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        disable_statistics=True,
        custom_config={"code": code_digest("pipeline.preprocessing")},
    )
    learned: dict[str, Any] = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "train_args": trainer_pb2.TrainArgs(),
        "eval_args": trainer_pb2.EvalArgs(),
    }
    tuner = Tuner(
        tuner_fn="pipeline.tuning.tuner_fn",
        custom_config={
            "tuner": settings.tuner.model_dump(mode="json"),
            "batch_size": settings.trainer.batch_size,
            "seed": settings.seed,
            "code": code_digest("pipeline.tuning"),
        },
        **learned,
    )
    trainer = Trainer(
        run_fn="pipeline.training.run_fn",
        base_model=network.outputs["model"],
        hyperparameters=tuner.outputs["best_hyperparameters"],
        custom_config={
            "trainer": settings.trainer.model_dump(mode="json"),
            "seed": settings.seed,
            "top_k": settings.top_k,
            "model_name": settings.model_name,
            "code": code_digest(
                "components.backbone", "components.embedding_gen", "pipeline.preprocessing", "pipeline.training"
            ),
        },
        **learned,
    )
    evaluator = Evaluator(
        examples=embeddings.outputs["embeddings"],
        schema=embeddings.outputs["schema"],
        model=trainer.outputs["model"],
        split="eval",
        signature="classify_embedding",
        code=code_digest("components.evaluator"),
    )
    branch = {
        "backbone": network.with_id(f"Backbone-{backbone}"),
        "embeddings": embeddings.with_id(f"EmbeddingGen-{backbone}"),
        "transform": transform.with_id(f"Transform-{backbone}"),
        "tuner": tuner.with_id(f"Tuner-{backbone}"),
        "trainer": trainer.with_id(f"Trainer-{backbone}"),
        "evaluator": evaluator.with_id(f"Evaluator-{backbone}"),
    }
    return branch


def _admission_nodes(
    settings: Settings,
    run_id: str,
    selector: BaseNode,
    examples: BaseNode,
    statistics: BaseNode,
    schema: BaseNode,
) -> list[BaseNode]:
    """The winner against the model in service, on the test photos that nothing has seen yet; then the push."""
    champion = ChampionModel(
        candidate=selector.outputs["winner"],
        registry=str(settings.registry),
        stable=stable_identity(Registry(settings.registry)),
        code=code_digest("components.champion_model"),
    )
    # Two nodes, not one: each model numbers breeds by itself, and a new champion does not re-measure the candidate.
    measures = {
        node_id: Evaluator(
            examples=examples.outputs["examples"],
            schema=schema.outputs["schema"],
            model=model,
            split="test",
            signature="serving_default",
            code=code_digest("components.evaluator"),
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
        code=code_digest("components.model_gate"),
        **settings.gate.model_dump(),
    )
    check = ServingCheck(
        model=selector.outputs["winner"],
        blessing=gate.outputs["blessing"],
        examples=examples.outputs["examples"],
        evaluation=measures["Evaluator-gate"].outputs["evaluation"],
        photos=SERVING_CHECK_PHOTOS,
        code=code_digest("components.serving_check", "serving.probe"),
    )
    pusher = Pusher(
        model=selector.outputs["winner"],
        decision=gate.outputs["decision"],
        serving_report=check.outputs["report"],
        statistics=statistics.outputs["statistics"],
        evaluation=measures["Evaluator-gate"].outputs["evaluation"],
        ingest=examples.outputs["report"],
        registry=str(settings.registry),
        run_id=run_id,
        commit=git_commit() or "",
        settings=to_yaml(settings),
        model_name=settings.model_name,
        **settings.card.model_dump(),
    )
    return [*measures.values(), champion, gate, check, pusher]


def _weights(settings: Settings, backbone: str) -> tuple[str, str]:
    """What Backbone gets as `weights`, and the digest of the file if it is one."""
    if not settings.weights_dir:
        return settings.weights, ""
    path = find_weights(backbone, str(Path(settings.weights_dir).resolve()))
    return path, file_digest(path)
