"""BackboneSelector component: compares the candidates and assembles the served model of the winner."""

import contextlib
import gc
import json
from typing import Any, ClassVar, NamedTuple

from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Artifact, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults
from tfx.utils import path_utils

from components import progress, saved_model
from components.artifacts import Comparison, IngestReport
from components.candidates.numbered_channels import declare_channels, number_channels
from components.candidates.selection import difference_to_winner, out_of_fold_metrics, select
from components.candidates.served_model import ServedModel
from components.candidates.trial_metrics import TRIAL_EPOCHS, TRIAL_INITIAL_EPOCH, TRIAL_SECONDS
from components.file_names import (
    BACKBONE_RECORD_FILE,
    COMPARISON_FILE,
    INGEST_REPORT_FILE,
    METRICS_FILE,
    OUT_OF_FOLD_FILE,
    TRAINING_FILE,
    TUNER_RESULTS_FILE,
)
from components.ingestion.splits import SPLITS
from components.json_files import read_json, read_json_lines, write_json
from components.local_copies import local_copy, local_output
from serving.model_files import MODEL_RECORD_FILE

_CANDIDATE_INPUTS = {
    "backbone": Model,
    "model": Model,
    "evaluation": ModelEvaluation,
    "tuner_results": TunerResults,
    "model_run": ModelRun,
    "embeddings": Examples,
}


class _Spec(ComponentSpec):
    PARAMETERS: ClassVar = {
        "candidates": ExecutionParameter(type=str),
        "price": ExecutionParameter(type=float),
        "price_unit": ExecutionParameter(type=str),
        "top_k": ExecutionParameter(type=int),
        "model_name": ExecutionParameter(type=str),
        "code_digest": ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {"report": ChannelParameter(type=IngestReport), **declare_channels(_CANDIDATE_INPUTS)}
    OUTPUTS: ClassVar = {"winner": ChannelParameter(type=Model), "comparison": ChannelParameter(type=Comparison)}


class _Candidate(NamedTuple):
    """Input artifacts of one candidate.

    Attributes:
        name: Name of the candidate.
        backbone_names: Names of the candidates that its backbones belong to.
        backbones: Its backbones, in the order in which its head takes their embeddings.
        embeddings: Embeddings of these backbones, and the candidate's own if it joins them.
        model: Transform graph and head.
        evaluation: Evaluation on eval.
        tuner_results: Trials of its search.
        model_run: Record of its training.
    """

    name: str
    backbone_names: list[str]
    backbones: list[Model]
    embeddings: list[Examples]
    model: Model
    evaluation: ModelEvaluation
    tuner_results: TunerResults
    model_run: ModelRun


class Executor(BaseExecutor):
    """Executor that selects the winner, writes its served model, and measures the latency of each candidate."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        candidates = _read_candidates(input_dict, exec_properties["candidates"])
        predictions = {
            candidate.name: read_json_lines(candidate.model_run.uri, OUT_OF_FOLD_FILE) for candidate in candidates
        }
        rows = [_comparison_row(candidate, predictions[candidate.name]) for candidate in candidates]
        price, price_unit = exec_properties["price"], exec_properties["price_unit"]
        winner, reason = select(rows, price, price_unit)
        report = read_json(input_dict["report"][0].uri, INGEST_REPORT_FILE)
        output = output_dict["winner"][0]
        counter = progress.Counter("candidates", len(candidates))
        # Latency does not affect the selection. It is measured here because all branches of the pipeline join in this
        # component, so no other component runs at the same time, not even in the local runner.
        for row, candidate in zip(rows, candidates, strict=True):
            with contextlib.ExitStack() as copies:
                *backbones, head = (
                    copies.enter_context(local_copy(_model_path(model)))
                    for model in (*candidate.backbones, candidate.model)
                )
                row["saved_model_bytes"] = sum(map(saved_model.size, (*backbones, head)))
                model = ServedModel(backbones, head, exec_properties["top_k"])
                if candidate.name == winner:
                    with local_output(path_utils.serving_model_dir(output.uri)) as folder:
                        model.save(folder, exec_properties["model_name"])
                    breeds = read_json(head, MODEL_RECORD_FILE)["breeds"]
                row["latency_ms_p50"] = model.latency_ms()
            # The functions of a served model refer to it, so only garbage collection frees its weights.
            del model
            gc.collect()
            row |= difference_to_winner(predictions[candidate.name], predictions[winner])
            counter.add()
        output.set_string_custom_property("backbone", winner)
        write_json(
            output_dict["comparison"][0].uri,
            COMPARISON_FILE,
            {
                "candidates": rows,
                "winner": winner,
                "reason": reason,
                "price": price,
                "price_unit": price_unit,
                "split_sizes": {split: sum(counts[split] for counts in report["breeds"].values()) for split in SPLITS},
                "breeds": breeds,
            },
        )


class BackboneSelector(BaseComponent):
    """Component that selects one candidate by its out-of-fold accuracy and its size.

    Args:
        candidates: Channels of each candidate: name -> {backbone, model, evaluation, tuner_results, model_run,
            embeddings}. A candidate without `backbone` uses the backbones of all other candidates, in their order.
        report: Ingestion report of ImageExampleGen.
        price, price_unit: Price of size; see `components.candidates.selection.select`.
        top_k: Number of breeds that the signature `top_k` returns.
        model_name: Name of the model in TensorFlow Serving.
        code_digest: Digest of the modules that the component runs.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(
        self,
        candidates: dict[str, dict[str, Channel]],
        report: Channel,
        price: float,
        price_unit: str,
        top_k: int,
        model_name: str,
        code_digest: str,
    ):
        own = [number for number, channels in enumerate(candidates.values()) if "backbone" in channels]
        parameter = [
            {"name": name, "backbones": [number] if number in own else own} for number, name in enumerate(candidates)
        ]
        outputs = {"winner": Channel(type=Model), "comparison": Channel(type=Comparison)}
        super().__init__(
            _Spec(
                candidates=json.dumps(parameter),
                price=price,
                price_unit=price_unit,
                top_k=top_k,
                model_name=model_name,
                code_digest=code_digest,
                report=report,
                **number_channels(candidates.values()),
                **outputs,
            )
        )


def _read_candidates(input_dict: dict[str, list[Artifact]], parameter: str) -> list[_Candidate]:
    """Collect the artifacts of each candidate.

    Args:
        input_dict: Artifacts by channel.
        parameter: JSON list of the candidates, in the order of their channels: `name`, and `backbones`, the numbers of
            the channels `backbone_<number>` and `embeddings_<number>` that the candidate uses.
    """
    listed = json.loads(parameter)
    return [
        _Candidate(
            name=entry["name"],
            backbone_names=[listed[backbone]["name"] for backbone in entry["backbones"]],
            backbones=[input_dict[f"backbone_{backbone}"][0] for backbone in entry["backbones"]],
            embeddings=[input_dict[f"embeddings_{used}"][0] for used in sorted({*entry["backbones"], number})],
            **{key: input_dict[f"{key}_{number}"][0] for key in ("model", "evaluation", "tuner_results", "model_run")},
        )
        for number, entry in enumerate(listed)
    ]


def _comparison_row(candidate: _Candidate, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Row of a candidate in comparison.json, without the facts about its served model and the winner.

    Args:
        candidate: Artifacts of the candidate.
        predictions: Its out-of-fold predictions.
    """
    backbones = [read_json(_model_path(backbone), BACKBONE_RECORD_FILE) for backbone in candidate.backbones]
    head = read_json(_model_path(candidate.model), MODEL_RECORD_FILE)
    overall = read_json(candidate.evaluation.uri, METRICS_FILE)["overall"]
    training = read_json(candidate.model_run.uri, TRAINING_FILE)
    trials = read_json(candidate.tuner_results.uri, TUNER_RESULTS_FILE)
    return {
        "backbone": candidate.name,
        "backbones": candidate.backbone_names,
        "weights": "+".join(sorted({backbone["weights"] for backbone in backbones})),
        **out_of_fold_metrics(predictions),
        "eval_accuracy": overall["accuracy"],
        "eval_accuracy_ci95": overall["accuracy_ci95"],
        "eval_loss": overall["loss"],
        "top3_accuracy": overall["top3_accuracy"],
        "tuning_seconds": sum(trial[TRIAL_SECONDS] for trial in trials),
        "tuning_trials": len(trials),
        "tuning_epochs": sum(trial.get(TRIAL_EPOCHS, 0) - trial.get(TRIAL_INITIAL_EPOCH, 0) for trial in trials),
        "embedding_seconds": sum(part.get_float_custom_property("seconds") for part in candidate.embeddings),
        "training_seconds": training["seconds"],
        "training_epochs": training["epochs"],
        "parameters": sum(backbone["parameters"] for backbone in backbones) + head["parameters"],
        "multiply_adds": sum(backbone["multiply_adds"] for backbone in backbones),
        "hyperparameters": head["hyperparameters"],
    }


def _model_path(model: Model) -> str:
    """Directory of the SavedModel in the artifact."""
    return path_utils.serving_model_path(model.uri)
