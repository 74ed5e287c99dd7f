"""Pusher: adds a blessed model as a new version to the registry that TensorFlow Serving reads."""

import datetime
import json
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelEvaluation
from tfx.utils import path_utils

from components.artifacts import GateDecision, IngestReport, PushRecord, RetrainDecision, ServingReport
from components.digests import git_commit
from components.evaluation_result import read_outcomes
from components.file_names import (
    GATE_FILE,
    INGEST_REPORT_FILE,
    METRICS_FILE,
    PHOTOS_FILE,
    PUSH_FILE,
    RETRAIN_FILE,
    SERVING_CHECK_FILE,
    SERVING_CHECK_GOLDEN_FILE,
)
from components.ingestion.data_drift import train_statistics
from components.json_files import read_json, read_json_lines, write_json
from components.local_copies import local_copy
from components.photo_features import FEATURES
from components.release.model_card import Statements, card_page, model_card
from components.reporting.report_data import effective_settings
from serving.model_files import (
    CARD_FILE,
    CARD_PAGE,
    GOLDEN_REQUESTS_FILE,
    LEARNED_PHOTOS_FILE,
    MODEL_RECORD_FILE,
    REFERENCE_PHOTOS_FILE,
    TRAIN_STATISTICS_FILE,
)
from serving.registry import Registry

# Prefixes of parameter values that the Kubeflow Pipelines server should have replaced.
_PLACEHOLDERS = ("[[", "{{")


def resolve_run_date(run_date: str, schedule_time: str) -> str:
    """Return the date to record for a run; "" if it is unknown.

    Args:
        run_date: Date of the run, "" for a run started manually, or `[[ScheduledTime]]` for a scheduled run.
        schedule_time: Schedule time from the server; for a run started manually, its creation time.
    """
    if not run_date.startswith(_PLACEHOLDERS):
        return run_date
    if not schedule_time or schedule_time.startswith(_PLACEHOLDERS):
        print(
            f"run_date is recorded as empty: the server replaced neither {run_date} nor {schedule_time!r}; "
            "this requires Kubeflow Pipelines later than 2.15.0",
            flush=True,
        )
        return ""
    return schedule_time


@component
def Pusher(
    model: InputArtifact[Model],
    decision: InputArtifact[GateDecision],
    serving_report: InputArtifact[ServingReport],
    statistics: InputArtifact[ExampleStatistics],
    evaluation: InputArtifact[ModelEvaluation],
    ingest: InputArtifact[IngestReport],
    pushed: OutputArtifact[PushRecord],
    registry: Parameter[str],
    run_id: Parameter[str],
    run_date: Parameter[str],
    schedule_time: Parameter[str],
    settings: Parameter[str],
    data: Parameter[str],
    weights_dir: Parameter[str],
    model_name: Parameter[str],
    data_source: Parameter[str],
    data_licence: Parameter[str],
    contact: Parameter[str],
    retrain: InputArtifact[RetrainDecision] = None,
):
    """Push a model that the gate blessed and a model server loaded, unless the registry already has the same model.

    The pushed version also contains:

    - its model card;
    - statistics of its training photos, for drift detection;
    - content hashes of its training photos, so that later candidates are not compared with it on these photos;
    - features of the test photos, for the comparison with captured photos, and their content hashes, so that later runs
      know which photos are new;
    - some test photos with the expected predictions (golden requests), for rollout.

    Args:
        registry: Base path of the pushed models.
        run_id: ID of the run. It differs in each run, so that this component is never cached.
        run_date, schedule_time: Arguments of `resolve_run_date`.
        settings: Settings of the pipeline, as a JSON object. `data`, `weights_dir`, `registry` and the gate's rules of
            the run take precedence.
        model_name, data_source, data_licence, contact: Facts for the model card.
        retrain: Decision of RetrainGate with the digest of the inputs, if the run has one; later runs compare with it.
    """
    gate = read_json(decision.uri, GATE_FILE)
    models = Registry(registry)
    version, existing = None, models.find_by_model_digest(gate["candidate"]["model_digest"])
    if gate["champion"] and gate["champion"]["unreadable"] and gate["champion"]["version"] == existing:
        existing = None  # the pushed version is damaged: push the model again
    inputs_digest = retrain and read_json(retrain.uri, RETRAIN_FILE)["inputs_digest"]
    if existing is not None and inputs_digest:
        # Without this, the next scheduled run would train the same model again.
        models.add_inputs_digest(existing, inputs_digest)
    if gate["blessed"] and existing is None:
        path, photos = path_utils.serving_model_path(model.uri), read_json_lines(ingest.uri, PHOTOS_FILE)
        admission = {
            "run_id": run_id,
            "run_date": resolve_run_date(run_date, schedule_time),
            "inputs_digest": inputs_digest,
            "commit": git_commit() or "",
            "settings": json.dumps(effective_settings(settings, data, weights_dir, registry, gate["rules"])),
            "captures": {
                "learned": _captures(_learned(photos)),
                "tested": _captures([row for row in photos if row.get("split") == "test"]),
            },
            "pushed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "gate": gate,
            "serving_check": read_json(serving_report.uri, SERVING_CHECK_FILE),
            "model_uri": model.uri,
        }

        def text_files(version: int) -> dict[str, str]:
            card = model_card(
                model_name,
                version,
                Statements(data_source, data_licence, contact),
                read_json(path, MODEL_RECORD_FILE),
                read_json(ingest.uri, INGEST_REPORT_FILE),
                read_json(evaluation.uri, METRICS_FILE),
                admission,
            )
            return {
                CARD_FILE: json.dumps(card, indent=1),
                CARD_PAGE: card_page(card),
                LEARNED_PHOTOS_FILE: "\n".join(sorted(row["content_hash"] for row in _learned(photos))),
                REFERENCE_PHOTOS_FILE: "\n".join(map(_reference_row, read_outcomes(evaluation.uri))),
                GOLDEN_REQUESTS_FILE: json.dumps(read_json(serving_report.uri, SERVING_CHECK_GOLDEN_FILE)),
            }

        with local_copy(path) as local_model, local_copy(train_statistics(statistics)) as local_statistics:
            version = models.push(local_model, admission, {TRAIN_STATISTICS_FILE: local_statistics}, text_files)
        pushed.set_int_custom_property("version", version)
    write_json(pushed.uri, PUSH_FILE, {"version": version, "already_pushed_as": existing})


def _learned(photos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the photos that the model learned from: its weights from train, its thresholds from eval."""
    return [row for row in photos if row.get("split") in ("train", "eval")]


def _captures(photos: list[dict[str, Any]]) -> list[str]:
    """IDs of the captures among the photos; `catbreeds inbox forget` names the versions that have one."""
    return sorted(row["origin"]["capture"] for row in photos if "origin" in row)


def _reference_row(outcome: dict[str, Any]) -> str:
    """Return the line of a test photo in REFERENCE_PHOTOS_FILE."""
    return json.dumps({name: outcome[name] for name in ("content_hash", *FEATURES, "unfamiliar") if name in outcome})
