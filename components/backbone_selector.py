"""BackboneSelector: compares the candidates on eval and hands on the winner."""

from typing import Any, ClassVar

from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults
from tfx.utils import io_utils, path_utils

from components.architectures import ARCHITECTURES
from components.artifacts import Comparison, IngestReport
from components.documents import read_json, write_json
from components.image_example_gen import REPORT_FILE
from components.measured import METRICS_FILE
from components.splits import SPLITS
from components.training_records import (
    TRAINING_FILE,
    TRIAL_EPOCHS,
    TRIAL_FIRST_EPOCH,
    TRIAL_SECONDS,
    TUNER_RESULTS_FILE,
)
from serving.model_record import RECORD_FILE

COMPARISON_FILE = "comparison.json"
_CANDIDATE_INPUTS = {
    "model": Model,
    "evaluation": ModelEvaluation,
    "tuner_results": TunerResults,
    "model_run": ModelRun,
    "embeddings": Examples,
}


class _Spec(ComponentSpec):
    PARAMETERS: ClassVar = {"rule": ExecutionParameter(type=str), "code": ExecutionParameter(type=str)}
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
    """Reads the candidates' measurements, decides, copies the winner."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        found = {
            backbone: {key: input_dict[f"{key}_{backbone}"][0] for key in _CANDIDATE_INPUTS}
            for backbone in ARCHITECTURES
            if input_dict.get(f"model_{backbone}")
        }
        candidates = [_candidate(inputs) for inputs in found.values()]
        winner, reason = select(candidates, exec_properties["rule"])
        report = read_json(input_dict["report"][0].uri, REPORT_FILE)
        model = path_utils.serving_model_path(found[winner]["model"].uri)
        output = output_dict["winner"][0]
        io_utils.copy_dir(model, path_utils.serving_model_dir(output.uri))
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
                "breeds": read_json(model, RECORD_FILE)["breeds"],
            },
        )


class BackboneSelector(BaseComponent):
    """Picks one candidate by its accuracy on eval and its number of parameters.

    Args:
        candidates: backbone -> {model, evaluation, tuner_results, model_run, embeddings} channels.
        report: of ImageExampleGen.
        rule: see `select`.
        code: digest of the modules that it runs.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(self, candidates: dict[str, dict[str, Channel]], report: Channel, rule: str, code: str):
        inputs = {
            f"{key}_{backbone}": channel
            for backbone, channels in candidates.items()
            for key, channel in channels.items()
        }
        outputs = {"winner": Channel(type=Model), "comparison": Channel(type=Comparison)}
        super().__init__(_Spec(rule=rule, code=code, report=report, **inputs, **outputs))


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
    """One row of comparison.json."""
    record = read_json(path_utils.serving_model_path(inputs["model"].uri), RECORD_FILE)
    overall = read_json(inputs["evaluation"].uri, METRICS_FILE)["overall"]
    training = read_json(inputs["model_run"].uri, TRAINING_FILE)
    trials = read_json(inputs["tuner_results"].uri, TUNER_RESULTS_FILE)
    return {
        "backbone": record["backbone"]["architecture"],
        "weights": record["backbone"]["weights"],
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
        "parameters": record["parameters"],
        "saved_model_bytes": training["saved_model_bytes"],
        "latency_ms_p50": training["latency_ms_p50"],
        "hyperparameters": record["hyperparameters"],
    }
