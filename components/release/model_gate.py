"""ModelGate: decides whether the candidate may be pushed."""

from typing import Any

from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Model, ModelBlessing, ModelEvaluation
from tfx.utils import path_utils

from components.artifacts import GateDecision, IngestReport, Metrics
from components.evaluation_result import read_evaluation_result
from components.file_names import CHAMPION_FILE, GATE_FILE, INGEST_REPORT_FILE, PHOTOS_FILE
from components.json_files import read_json, read_json_lines, write_json
from components.kubeflow_ui import set_metrics
from components.release.gate_rules import Rules, gate_document
from serving.model_files import MODEL_RECORD_FILE


@component
def ModelGate(
    candidate: InputArtifact[Model],
    candidate_evaluation: InputArtifact[ModelEvaluation],
    champion: InputArtifact[Model],
    champion_evaluation: InputArtifact[ModelEvaluation],
    ingest: InputArtifact[IngestReport],
    blessing: OutputArtifact[ModelBlessing],
    decision: OutputArtifact[GateDecision],
    metrics: OutputArtifact[Metrics],
    min_accuracy: Parameter[float],
    min_test_photos: Parameter[int],
    above_majority: Parameter[int],
    policy: Parameter[str],
    margin: Parameter[float],
    min_slice: Parameter[int],
    max_slice_drop: Parameter[float],
    code_digest: Parameter[str],
):
    """Apply the gate's rules to the Evaluators' results on test; write the blessing and gate.json.

    Args:
        above_majority: Rule as 1 or 0, because TFX has no Boolean execution parameters.
        min_accuracy, min_test_photos, policy, margin, min_slice, max_slice_drop: Rules; see `gate` in the settings.
        code_digest: Digest of the modules that this component runs.
    """
    document = gate_document(
        Rules(min_accuracy, min_test_photos, bool(above_majority), policy, margin, min_slice, max_slice_drop),
        read_json(path_utils.serving_model_path(candidate.uri), MODEL_RECORD_FILE),
        read_evaluation_result(candidate_evaluation.uri),
        read_json(champion.uri, CHAMPION_FILE),
        read_evaluation_result(champion_evaluation.uri),
        read_json(ingest.uri, INGEST_REPORT_FILE),
        read_json_lines(ingest.uri, PHOTOS_FILE),
    )
    write_json(decision.uri, GATE_FILE, document)
    decision.set_int_custom_property("refused", int(document["outcome"] == "refused"))
    set_metrics(metrics, _ui_metrics(document))
    name, value = (
        (constants.BLESSED_FILE_NAME, constants.BLESSED_VALUE)
        if document["blessed"]
        else (constants.NOT_BLESSED_FILE_NAME, constants.NOT_BLESSED_VALUE)
    )
    write_json(blessing.uri, name, None)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)


def _ui_metrics(gate: dict[str, Any]) -> dict[str, float | None]:
    """Numbers from gate.json that the Kubeflow UI shows."""
    champion, comparison = gate["champion"] or {}, gate["comparison"] or {}
    low, high = comparison.get("accuracy_difference_ci95", (None, None))
    return {
        "blessed": gate["blessed"],
        "test_accuracy": gate["candidate"].get("test_accuracy"),
        "test_photos": gate["candidate"].get("test_photos"),
        "balanced_accuracy": gate["candidate"].get("balanced_accuracy"),
        "majority_accuracy": (gate["majority"] or {}).get("accuracy"),
        "champion_version": champion.get("version"),
        "champion_test_accuracy": champion.get("test_accuracy"),
        "accuracy_difference_low95": low,
        "accuracy_difference_high95": high,
        **{
            name: value
            for name, value in comparison.items()
            if name not in ("policy", "photos", "accuracy_difference_ci95")
        },
    }
