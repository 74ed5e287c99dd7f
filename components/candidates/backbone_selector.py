"""BackboneSelector: compares the candidates on eval and assembles the winner: the model to serve."""

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
from components.candidates.trial_metrics import TRIAL_EPOCHS, TRIAL_FIRST_EPOCH, TRIAL_SECONDS
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
    """Reads the candidates' measurements, decides, assembles the winner and takes the latency of each candidate."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        found = {
            backbone: {key: input_dict[f"{key}_{backbone}"][0] for key in _CANDIDATE_INPUTS}
            for backbone in ARCHITECTURES
            if input_dict.get(f"model_{backbone}")
        }
        candidates = [_candidate(inputs) for inputs in found.values()]
        winner, reason = select(candidates, exec_properties["rule"])
        report = read_json(input_dict["report"][0].uri, INGEST_REPORT_FILE)
        output = output_dict["winner"][0]
        counter = progress.Counter("candidates", len(candidates))
        # The choice is made: latency is only shown. Nothing else runs now that could disturb it, neither in the local
        # runner, for all branches end here.
        for row, inputs in zip(candidates, found.values(), strict=True):
            with local_copy(_path(inputs["backbone"])) as backbone, local_copy(_path(inputs["model"])) as head:
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
                "breeds": read_json(_path(found[winner]["model"]), MODEL_RECORD_FILE)["breeds"],
            },
        )


class BackboneSelector(BaseComponent):
    """Picks one candidate by its accuracy on eval and its number of parameters.

    Args:
        candidates: backbone -> {backbone, model, evaluation, tuner_results, model_run, embeddings} channels.
        report: of ImageExampleGen.
        rule: see `select`.
        top_k: number of breeds that the signature `top_k` answers.
        model_name: TF Serving's name for the model.
        code_digest: of the modules that it runs.
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
    """The winner's name and the reason, from the rows of comparison.json.

    Args:
        candidates: rows of comparison.json, in any order.
        rule: "smaller_within_interval": of those whose accuracy lies in the 95 % interval of the most accurate one's,
            the one with the fewest parameters; "most_accurate": parameters decide between equals only.
    """
    ranked = sorted(candidates, key=lambda row: (-row["eval_accuracy"], row["parameters"], row["backbone"]))
    best = ranked[0]
    if len(ranked) == 1:
        return best["backbone"], "the only candidate"
    if rule == "smaller_within_interval":
        low, high = best["eval_accuracy_ci95"]
        near = [row for row in ranked if row["eval_accuracy"] >= low]
        smallest = min(near, key=lambda row: row["parameters"])  # of equals the first, which is more accurate
        if smallest is not best:
            return smallest["backbone"], (
                f"the smallest, with {smallest['parameters'] / 1e6:.1f} million parameters, of the {len(near)} whose "
                f"accuracy on eval lies in the 95 % interval of the most accurate one ({best['backbone']}: "
                f"{best['eval_accuracy']:.3f}, {low:.3f} to {high:.3f}): {smallest['eval_accuracy']:.3f}"
            )
    if ranked[1]["eval_accuracy"] == best["eval_accuracy"]:
        reason = f"as accurate on eval as {ranked[1]['backbone']} ({best['eval_accuracy']:.3f}), with fewer parameters"
    else:
        reason = (
            f"most accurate on eval: {best['eval_accuracy']:.3f}, before {ranked[1]['backbone']} with "
            f"{ranked[1]['eval_accuracy']:.3f}"
        )
    return best["backbone"], reason


def _candidate(inputs: dict[str, Any]) -> dict[str, Any]:
    """One row of comparison.json, but for its size and its latency."""
    backbone = read_json(_path(inputs["backbone"]), BACKBONE_RECORD_FILE)
    head = read_json(_path(inputs["model"]), MODEL_RECORD_FILE)
    overall = read_json(inputs["evaluation"].uri, METRICS_FILE)["overall"]
    training = read_json(inputs["model_run"].uri, TRAINING_FILE)
    trials = read_json(inputs["tuner_results"].uri, TUNER_RESULTS_FILE)
    return {
        "backbone": backbone["architecture"],
        "weights": backbone["weights"],
        "eval_accuracy": overall["accuracy"],
        "eval_accuracy_ci95": overall["accuracy_ci95"],
        "eval_loss": overall["loss"],
        "top3_accuracy": overall["top3_accuracy"],
        "tuning_seconds": sum(trial[TRIAL_SECONDS] for trial in trials),
        "tuning_trials": len(trials),
        "tuning_epochs": sum(trial[TRIAL_EPOCHS] - trial[TRIAL_FIRST_EPOCH] for trial in trials),
        "embedding_seconds": inputs["embeddings"].get_float_custom_property("seconds"),
        "training_seconds": training["seconds"],
        "training_epochs": training["epochs"],
        "parameters": backbone["parameters"] + head["parameters"],
        "hyperparameters": head["hyperparameters"],
    }


def _path(model: Model) -> str:
    """Directory of the SavedModel."""
    return path_utils.serving_model_path(model.uri)
