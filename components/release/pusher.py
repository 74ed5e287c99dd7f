"""Pusher: a blessed model becomes a new version in the registry that TensorFlow Serving reads."""

import datetime
import json

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelEvaluation
from tfx.utils import path_utils

from components.artifacts import GateDecision, IngestReport, PushRecord, RetrainDecision, ServingReport
from components.digests import git_commit
from components.file_names import (
    GATE_FILE,
    INGEST_REPORT_FILE,
    METRICS_FILE,
    PHOTOS_FILE,
    PUSH_FILE,
    RETRAIN_FILE,
    SERVING_ANSWERS_FILE,
    SERVING_CHECK_FILE,
)
from components.ingestion.data_drift import train_statistics
from components.json_files import read_json, read_json_lines, write_json
from components.local_copies import local_copy
from components.release.model_card import Statements, card_page, model_card
from components.reporting.run_summary import settings_of_run
from serving.model_files import (
    CARD_FILE,
    CARD_PAGE,
    GOLDEN_REQUESTS_FILE,
    LEARNED_PHOTOS_FILE,
    MODEL_RECORD_FILE,
    TRAIN_STATISTICS_FILE,
)
from serving.registry import Registry

_PLACEHOLDERS = ("[[", "{{")


def date_of_run(run_date: str, schedule_time: str) -> str:
    """For which date a run is; "" where nobody says it.

    Args:
        run_date: the date itself, "" for a run that somebody started, or `[[ScheduledTime]]` for a scheduled run.
        schedule_time: of a scheduled run, as the server says it. For a run that somebody started, the server says when.
    """
    if not run_date.startswith(_PLACEHOLDERS):
        return run_date
    if not schedule_time or schedule_time.startswith(_PLACEHOLDERS):
        print(
            f"run_date is recorded as empty: this server does not replace {run_date}, nor {schedule_time!r}; "
            "Kubeflow Pipelines does after version 2.15.0",
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
    """Pushes what the gate blessed and a model server could serve; a model that is there already is not pushed twice.

    With it go its model card; the statistics of the photos that it learned from, for drift to be told against; their
    hashes, so that no later candidate is compared with it on photos that it knows; and some test photos with their
    answers, for rollout.

    Args:
        registry: base path of the pushed models.
        run_id: differs in each run, so that a push is never taken from the cache.
        run_date, schedule_time: see `date_of_run`.
        settings: in YAML; what a run can be given instead, it is given in `data`, `weights_dir` and the gate's rules.
        model_name, data_source, data_licence, contact: for the model card.
        retrain: what the model was made from, where the run has looked; later runs compare with it.
    """
    gate = read_json(decision.uri, GATE_FILE)
    models = Registry(registry)
    version, existing = None, models.find_by_model_digest(gate["candidate"]["model_digest"])
    if gate["champion"] and gate["champion"]["unreadable"] and gate["champion"]["version"] == existing:
        existing = None  # what was pushed is damaged: it is pushed anew
    origin = retrain and read_json(retrain.uri, RETRAIN_FILE)["inputs_digest"]
    if existing is not None and origin:
        models.add_inputs_digest(existing, origin)  # or the next scheduled run would train the same model again
    if gate["blessed"] and existing is None:
        admission = {
            "run_id": run_id,
            "run_date": date_of_run(run_date, schedule_time),
            "inputs_digest": origin,
            "commit": git_commit() or "",
            "settings": settings_of_run(settings, data, weights_dir, registry, gate["rules"]),
            "pushed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "gate": gate,
            "serving_check": read_json(serving_report.uri, SERVING_CHECK_FILE),
            "model_uri": model.uri,
        }
        path, photos = path_utils.serving_model_path(model.uri), read_json_lines(ingest.uri, PHOTOS_FILE)

        def card(version: int) -> dict[str, str]:
            facts = model_card(
                model_name,
                version,
                Statements(data_source, data_licence, contact),
                read_json(path, MODEL_RECORD_FILE),
                read_json(ingest.uri, INGEST_REPORT_FILE),
                read_json(evaluation.uri, METRICS_FILE),
                admission,
            )
            learned = sorted(row["content_hash"] for row in photos if row.get("split") in ("train", "eval"))
            return {
                CARD_FILE: json.dumps(facts, indent=1),
                CARD_PAGE: card_page(facts),
                LEARNED_PHOTOS_FILE: "\n".join(learned),
                GOLDEN_REQUESTS_FILE: json.dumps(read_json(serving_report.uri, SERVING_ANSWERS_FILE)),
            }

        with local_copy(path) as local, local_copy(train_statistics(statistics)) as learned_from:
            version = models.push(local, admission, {TRAIN_STATISTICS_FILE: learned_from}, card)
        pushed.set_int_custom_property("version", version)
    write_json(pushed.uri, PUSH_FILE, {"version": version, "already_pushed_as": existing})
