"""RunReport: writes the report page and a summary as artifacts, for runs without a terminal."""

import json
from typing import Any, ClassVar

from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, ModelRun, TunerResults

from components.artifacts import HTML, Comparison, DataVerdict, GateDecision, IngestReport, Markdown, PushRecord
from components.candidates.numbered_channels import declare_channels, number_channels
from components.file_names import GATE_FILE
from components.json_files import read_json
from components.kubeflow_ui import escape_markdown, write_page
from components.reporting.comparison_text import candidate_name, difference_to_winner, is_out_of_fold
from components.reporting.report_data import RANDOM_WEIGHTS_NOTE, ArtifactUris, effective_settings, load_documents
from components.reporting.report_page import report_page

_RUN_INPUTS = {
    "ingest": IngestReport,
    "verdict": DataVerdict,
    "examples": Examples,
    "comparison": Comparison,
    "winner": Model,
    "evaluation": ModelEvaluation,
    "decision": GateDecision,
    "pushed": PushRecord,
}
_CANDIDATE_INPUTS = {"training": ModelRun, "trials": TunerResults}


class _Spec(ComponentSpec):
    PARAMETERS: ClassVar = {
        name: ExecutionParameter(type=str)
        for name in ("candidates", "registry", "run_id", "settings", "data", "weights_dir")
    }
    INPUTS: ClassVar = {
        **{key: ChannelParameter(type=artifact) for key, artifact in _RUN_INPUTS.items()},
        **declare_channels(_CANDIDATE_INPUTS),
    }
    OUTPUTS: ClassVar = {"page": ChannelParameter(type=HTML), "summary": ChannelParameter(type=Markdown)}


class Executor(BaseExecutor):
    """Executor that loads the documents of the run and renders them."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        uris = {key: artifacts[0].uri for key, artifacts in input_dict.items() if artifacts}
        candidates = json.loads(exec_properties["candidates"])
        by_candidate = {
            key: {name: uris[f"{key}_{number}"] for number, name in enumerate(candidates)} for key in _CANDIDATE_INPUTS
        }
        registry = exec_properties["registry"]
        settings = effective_settings(
            exec_properties["settings"],
            exec_properties["data"],
            exec_properties["weights_dir"],
            registry,
            read_json(uris["decision"], GATE_FILE)["rules"],
        )
        artifact_uris = ArtifactUris(**{key: uris[key] for key in _RUN_INPUTS}, **by_candidate)
        documents = load_documents(artifact_uris, registry, exec_properties["run_id"], settings)
        write_page(output_dict["page"][0], report_page(documents))
        write_page(output_dict["summary"][0], _summary(documents))


class RunReport(BaseComponent):
    """Component that writes the same report as `catbreeds run`.

    Args:
        candidates: Channels of each candidate: name -> {training, trials}, the channel model_run of its Trainer and its
            tuner results.
        inputs: The other channels by name; see `components.reporting.report_data.ArtifactUris`.
        parameters: Values of registry, run_id, settings (a JSON object), and the data and weights_dir of the run.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(
        self,
        candidates: dict[str, dict[str, Channel]],
        inputs: dict[str, Channel],
        parameters: dict[str, object],
    ):
        outputs = {"page": Channel(type=HTML), "summary": Channel(type=Markdown)}
        channels = {**inputs, **number_channels(candidates.values()), **outputs}
        super().__init__(_Spec(candidates=json.dumps(list(candidates)), **parameters, **channels))


def _summary(documents: dict) -> str:
    """Return the verdict, its reasons and the comparison, in Markdown."""
    gate, comparison = documents["gate"], documents["comparison"]
    labels = [f"{label} = version {version}" for label, version in gate["serving"].items()]
    lines = [
        f"## {escape_markdown(documents['verdict'])}",
        "",
        *(f"- {escape_markdown(reason)}" for reason in gate["reasons"]),
        "",
        f"Labels: {', '.join(labels) or 'none'}.",
        "",
        f"Winner: **{comparison['winner']}** ({escape_markdown(comparison['reason'])}).",
        "",
        *_comparison_table(comparison),
    ]
    if documents["random_weights"]:
        lines += ["", RANDOM_WEIGHTS_NOTE]
    return "\n".join([*lines, ""])


def _comparison_table(comparison: dict[str, Any]) -> list[str]:
    """The lines of a Markdown table with one row for each candidate."""
    headings = ["Candidate", "Eval accuracy", "95% CI", "Eval loss", "Top-3 accuracy"]
    if is_out_of_fold(comparison):
        headings[1:1] = ["Out-of-fold accuracy (train + eval)", "95% CI", "Difference to winner (points, 95% CI)"]
    lines = [headings, ["---"] * len(headings)]
    for row in comparison["candidates"]:
        cells = [escape_markdown(candidate_name(row))]
        if is_out_of_fold(comparison):
            cells += [f"{row['oof_accuracy']:.3f}", "{:.2f}-{:.2f}".format(*row["oof_accuracy_ci95"])]
            cells += [difference_to_winner(row, comparison)]
        cells += [f"{row['eval_accuracy']:.3f}", "{:.2f}-{:.2f}".format(*row["eval_accuracy_ci95"])]
        lines.append([*cells, f"{row['eval_loss']:.2f}", f"{row['top3_accuracy']:.3f}"])
    return [f"| {' | '.join(line)} |" for line in lines]
