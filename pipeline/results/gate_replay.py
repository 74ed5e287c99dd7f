"""A decision of ModelGate taken again by other rules, from what was measured then: nothing is trained or pushed."""

from pathlib import Path
from typing import Any, get_type_hints

from components.evaluation_result import read_measured
from components.json_files import read_json
from components.release.gate_rules import Rules, judge
from pipeline.results.metadata import History
from serving.model_record import read_record


def replay(workdir: str, run: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """gate.json as it would be, with the id of the run.

    Args:
        workdir: of the run.
        run: its id, None for the last one.
        changes: rules that differ from those of the run.

    Raises:
        HistoryError: there is no such run, or it did not get as far as the gate.
        FileNotFoundError: an artifact of that run is gone.
    """
    history = History(workdir)
    run = run or history.last_run("ModelGate")
    gate = history.execution(run, "ModelGate")
    uris = {key: artifacts[0].uri for key, artifacts in gate.inputs.items()}
    known = {name: kind(gate.properties[name]) for name, kind in get_type_hints(Rules).items()}
    document = judge(
        Rules(**(known | changes)),
        read_record(Path(uris["candidate"]) / "Format-Serving"),
        read_measured(uris["candidate_evaluation"]),
        read_json(uris["champion"], "champion.json"),
        read_measured(uris["champion_evaluation"]),
        read_json(uris["ingest"], "report.json"),
    )
    return {"run": run, **document}
