"""BackboneSelector component: compares the candidates on eval and assembles the served model of the winner."""

from typing import Any, ClassVar

from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults
from tfx.utils import path_utils

from components import progress, saved_model
from components.artifacts import Comparison, IngestReport
from components.candidates.architectures import ARCHITECTURES
from components.candidates.served_model import ServedModel
from components.candidates.trial_metrics import TRIAL_EPOCHS, TRIAL_INITIAL_EPOCH, TRIAL_SECONDS
from components.file_names import (
    BACKBONE_RECORD_FILE,
    COMPARISON_FILE,
    INGEST_REPORT_FILE,
    METRICS_FILE,
    TRAINING_FILE,
    TUNER_RESULTS_FILE,
)
from components.ingestion.splits import SPLITS
from components.json_files import read_json, write_json
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
        "rule": ExecutionParameter(type=str),
        "top_k": ExecutionParameter(type=int),
        "model_name": ExecutionParameter(type=str),
        "code_digest": ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {
        "report": ChannelParameter(type=IngestReport),
        **{
            f"{key}_{backbone}": ChannelParameter(type=artifact, optional=True)
            for backbone in ARCHITECTURES
            for key, artifact in _CANDIDATE_INPUTS.items()
        },
    }
    OUTPUTS: ClassVar = {"winner": ChannelParameter(type=Model), "comparison": ChannelParameter(type=Comparison)}


class Executor(BaseExecutor):
    """Executor that selects the winner, writes its served model, and measures the latency of each candidate."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        candidate_artifacts = {
            backbone: {key: input_dict[f"{key}_{backbone}"][0] for key in _CANDIDATE_INPUTS}
            for backbone in ARCHITECTURES
            if input_dict.get(f"model_{backbone}")
        }
        candidates = [_comparison_row(artifacts) for artifacts in candidate_artifacts.values()]
        winner, reason = select(candidates, exec_properties["rule"])
        report = read_json(input_dict["report"][0].uri, INGEST_REPORT_FILE)
        output = output_dict["winner"][0]
        counter = progress.Counter("candidates", len(candidates))
        # Latency does not affect the selection. It is measured here because all branches of the pipeline join in this
        # component, so no other component runs at the same time, not even in the local runner.
        for row, artifacts in zip(candidates, candidate_artifacts.values(), strict=True):
            backbone_path, head_path = _model_path(artifacts["backbone"]), _model_path(artifacts["model"])
            with local_copy(backbone_path) as backbone, local_copy(head_path) as head:
                row["saved_model_bytes"] = saved_model.size(backbone) + saved_model.size(head)
                model = ServedModel([backbone], head, exec_properties["top_k"])
                if row["backbone"] == winner:
                    with local_output(path_utils.serving_model_dir(output.uri)) as folder:
                        model.save(folder, exec_properties["model_name"])
                row["latency_ms_p50"] = model.latency_ms()
            counter.add()
        output.set_string_custom_property("backbone", winner)
        write_json(
            output_dict["comparison"][0].uri,
            COMPARISON_FILE,
            {
                "candidates": candidates,
                "winner": winner,
                "reason": reason,
                "rule": exec_properties["rule"],
                "split_sizes": {split: sum(counts[split] for counts in report["breeds"].values()) for split in SPLITS},
                "breeds": read_json(_model_path(candidate_artifacts[winner]["model"]), MODEL_RECORD_FILE)["breeds"],
            },
        )


class BackboneSelector(BaseComponent):
    """Component that selects one candidate by accuracy on eval and number of parameters.

    Args:
        candidates: Channels of each candidate: backbone -> {backbone, model, evaluation, tuner_results, model_run,
            embeddings}.
        report: Ingestion report of ImageExampleGen.
        rule: Selection rule; see `select`.
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
        rule: str,
        top_k: int,
        model_name: str,
        code_digest: str,
    ):
        inputs = {
            f"{key}_{backbone}": channel
            for backbone, channels in candidates.items()
            for key, channel in channels.items()
        }
        outputs = {"winner": Channel(type=Model), "comparison": Channel(type=Comparison)}
        super().__init__(
            _Spec(
                rule=rule,
                top_k=top_k,
                model_name=model_name,
                code_digest=code_digest,
                report=report,
                **inputs,
                **outputs,
            )
        )


def select(candidates: list[dict[str, Any]], rule: str) -> tuple[str, str]:
    """Return the backbone of the winner and the reason for the selection.

    Args:
        candidates: Rows of comparison.json, in any order.
        rule: "smaller_within_interval" selects, among the candidates whose accuracy is at least the lower bound of the
            95% CI of the most accurate candidate, the one with the fewest parameters. "most_accurate" selects
            the most accurate candidate; the number of parameters only breaks ties.
    """
    ranked = sorted(candidates, key=lambda row: (-row["eval_accuracy"], row["parameters"], row["backbone"]))
    best = ranked[0]
    if len(ranked) == 1:
        return best["backbone"], "the only candidate"
    if rule == "smaller_within_interval":
        low, high = best["eval_accuracy_ci95"]
        within_interval = [row for row in ranked if row["eval_accuracy"] >= low]
        smallest = min(within_interval, key=lambda row: row["parameters"])  # ties: the first, which is more accurate
        if smallest is not best:
            return smallest["backbone"], (
                f"smallest network, with {smallest['parameters'] / 1e6:.1f} million parameters, of the "
                f"{len(within_interval)} whose accuracy on eval is within the 95% CI of the most accurate one: "
                f"{smallest['eval_accuracy']:.3f}, against {best['eval_accuracy']:.3f} ({low:.3f} to {high:.3f}) "
                f"for {best['backbone']}"
            )
    if ranked[1]["eval_accuracy"] == best["eval_accuracy"]:
        reason = f"as accurate on eval as {ranked[1]['backbone']} ({best['eval_accuracy']:.3f}), with fewer parameters"
    else:
        reason = (
            f"most accurate on eval: {best['eval_accuracy']:.3f}, ahead of {ranked[1]['backbone']} with "
            f"{ranked[1]['eval_accuracy']:.3f}"
        )
    return best["backbone"], reason


def _comparison_row(artifacts: dict[str, Any]) -> dict[str, Any]:
    """Row of a candidate in comparison.json, without the size and the latency of its served model."""
    backbone = read_json(_model_path(artifacts["backbone"]), BACKBONE_RECORD_FILE)
    head = read_json(_model_path(artifacts["model"]), MODEL_RECORD_FILE)
    overall = read_json(artifacts["evaluation"].uri, METRICS_FILE)["overall"]
    training = read_json(artifacts["model_run"].uri, TRAINING_FILE)
    trials = read_json(artifacts["tuner_results"].uri, TUNER_RESULTS_FILE)
    return {
        "backbone": backbone["architecture"],
        "weights": backbone["weights"],
        "eval_accuracy": overall["accuracy"],
        "eval_accuracy_ci95": overall["accuracy_ci95"],
        "eval_loss": overall["loss"],
        "top3_accuracy": overall["top3_accuracy"],
        "tuning_seconds": sum(trial[TRIAL_SECONDS] for trial in trials),
        "tuning_trials": len(trials),
        "tuning_epochs": sum(trial.get(TRIAL_EPOCHS, 0) - trial.get(TRIAL_INITIAL_EPOCH, 0) for trial in trials),
        "embedding_seconds": artifacts["embeddings"].get_float_custom_property("seconds"),
        "training_seconds": training["seconds"],
        "training_epochs": training["epochs"],
        "parameters": backbone["parameters"] + head["parameters"],
        "hyperparameters": head["hyperparameters"],
    }


def _model_path(model: Model) -> str:
    """Directory of the SavedModel in the artifact."""
    return path_utils.serving_model_path(model.uri)
