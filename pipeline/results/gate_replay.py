"""Replay a decision of ModelGate with other rules on the recorded evaluations, without training or pushing."""

from pathlib import Path
from typing import Any, get_type_hints

from components.evaluation_result import read_evaluation_result
from components.file_names import CHAMPION_FILE, INGEST_REPORT_FILE, PHOTOS_FILE
from components.json_files import read_json, read_json_lines
from components.release.gate_rules import Rules, gate_document
from pipeline.results.run_history import RunHistory
from serving.model_files import read_record, with_current_keys


def replay(workdir: str, run: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Contents of gate.json under the changed rules, plus the ID of the run.

    Args:
        workdir: Workdir of the run.
        run: ID of the run; None for the last one.
        changes: Rules that override those of the run.

    Raises:
        HistoryError: If the run does not exist or did not reach the gate.
        FileNotFoundError: If an artifact of the run has been deleted.
    """
    history = RunHistory(workdir)
    run = run or history.last_run("ModelGate")
    gate = history.execution(run, "ModelGate")
    uris = {key: artifacts[0].uri for key, artifacts in gate.inputs.items()}
    rules = {name: kind(gate.properties[name]) for name, kind in get_type_hints(Rules).items()}
    document = gate_document(
        Rules(**(rules | changes)),
        read_record(Path(uris["candidate"]) / "Format-Serving"),
        read_evaluation_result(uris["candidate_evaluation"]),
        _champion(uris["champion"]),
        read_evaluation_result(uris["champion_evaluation"]),
        read_json(uris["ingest"], INGEST_REPORT_FILE),
        read_json_lines(uris["ingest"], PHOTOS_FILE),
    )
    return {"run": run, **document}


def _champion(uri: str) -> dict[str, Any] | None:
    champion = read_json(uri, CHAMPION_FILE)
    return with_current_keys(champion) if champion else None
