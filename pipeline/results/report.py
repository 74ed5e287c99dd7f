"""The report of a run: comparison.json, gate.json and index.html in `report/`, and a summary on the terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.file_names import COMPARISON_FILE, GATE_FILE, INGEST_REPORT_FILE
from components.ingestion.splits import SPLITS
from components.json_files import read_json
from components.reporting.comparison_text import is_out_of_fold
from components.reporting.report_data import (
    RANDOM_WEIGHTS_NOTE,
    ArtifactUris,
    excluded_by_kind,
    has_random_weights,
    load_documents,
    verdict,
)
from pipeline.node_ids import branch_node_id
from pipeline.settings import Settings
from serving.labels import STABLE

if TYPE_CHECKING:
    from pipeline.runners.local import NodeRun

INGEST_FILE = "ingest.json"
# Heading, key in the rows of comparison.json, and cell. Earlier versions wrote no out-of-fold results ("OOF").
_TABLE_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("OOF accuracy", "oof_accuracy", "{:.3f}".format),
    ("95% CI", "oof_accuracy_ci95", lambda bounds: "{:.2f}-{:.2f}".format(*bounds)),
    ("to winner (pt)", "difference_to_winner", lambda difference: _points(difference)),
    ("95% CI", "difference_ci95", lambda bounds: "/".join(map(_points, bounds))),
    ("OOF loss", "oof_loss", "{:.2f}".format),
    ("eval accuracy", "eval_accuracy", "{:.3f}".format),
    ("95% CI", "eval_accuracy_ci95", lambda bounds: "{:.2f}-{:.2f}".format(*bounds)),
    ("eval loss", "eval_loss", "{:.2f}".format),
    ("top-3 accuracy", "top3_accuracy", "{:.3f}".format),
    ("embedding (s)", "embedding_seconds", "{:.0f}".format),
    ("tuning (s)", "tuning_seconds", "{:.0f}".format),
    ("training (s)", "training_seconds", "{:.0f}".format),
    ("parameters", "parameters", lambda number: f"{number / 1e6:.1f}M"),
    ("multiply-adds", "multiply_adds", lambda number: f"{number / 1e9:.1f}G"),
    ("size (MB)", "saved_model_bytes", lambda size: f"{size / 1e6:.0f}"),
    ("latency (ms)", "latency_ms_p50", "{:.0f}".format),
)
# Empty for the winner.
_DIFFERENCES = {"difference_to_winner", "difference_ci95"}


def read_ingest(run: "NodeRun") -> dict[str, Any]:
    """Read the report of ImageExampleGen: photo counts by breed and split, and all excluded files."""
    return _read(Path(run.outputs["report"]) / INGEST_REPORT_FILE)


def write_ingest(folder: Path, ingest: dict[str, Any]) -> None:
    """Write the report of ImageExampleGen to the report folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INGEST_FILE).write_text(json.dumps(ingest, indent=1), encoding="utf-8")


def show_saved(console: Console, folder: Path, data: bool) -> None:
    """Print the saved comparison and verdict of the last run, or its data report if `data` is true.

    Raises:
        FileNotFoundError: If no run has written the report yet.
        DamagedFileError: If a document is not valid JSON.
    """
    if data:
        _show_ingest(console, _read(folder / INGEST_FILE))
        return
    _show_decision(console, _read(folder / COMPARISON_FILE), _read(folder / GATE_FILE))
    console.print(f"Report: {folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


def _read(path: Path) -> Any:
    return read_json(str(path.parent), path.name)


def collect(runs: dict[str, "NodeRun"], settings: Settings, run_id: str) -> dict[str, Any]:
    """Load the documents that the components of a run wrote; see `components.reporting.report_data`."""

    def uris(node: str, key: str) -> dict[str, str]:
        return {name: runs[branch_node_id(node, name)].outputs[key] for name in settings.candidate_names}

    artifact_uris = ArtifactUris(
        ingest=runs["ImageExampleGen"].outputs["report"],
        verdict=runs["DataGate"].outputs["verdict"],
        examples=runs["ImageExampleGen"].outputs["examples"],
        comparison=runs["BackboneSelector"].outputs["comparison"],
        winner=runs["BackboneSelector"].outputs["winner"],
        evaluation=runs["Evaluator-gate"].outputs["evaluation"],
        decision=runs["ModelGate"].outputs["decision"],
        pushed=runs["Pusher"].outputs["pushed"],
        training=uris("Trainer", "model_run"),
        trials=uris("Tuner", "tuner_results"),
    )
    logdir = str(Path(settings.workdir) / "artifacts")
    return load_documents(artifact_uris, settings.registry, run_id, settings.model_dump(mode="json"), logdir)


def write(folder: Path, documents: dict[str, Any]) -> Path:
    """Write the three files to `folder`; return the path of the page."""
    from components.reporting.report_page import report_page

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("comparison", "gate"):
        (folder / f"{name}.json").write_text(json.dumps(documents[name], indent=1), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(report_page(documents), encoding="utf-8")
    return page


def show(console: Console, documents: dict[str, Any]) -> None:
    """Print warnings, the comparison and the verdict."""
    for warning in documents["data_verdict"]["warnings"]:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    if excluded := documents["ingest"]["left_out"]:
        console.print(f"Excluded files: {len(excluded)}; `catbreeds report --photos` lists them.", style="yellow")
    _show_decision(console, documents["comparison"], documents["gate"])


def _show_decision(console: Console, comparison: dict[str, Any], gate: dict[str, Any]) -> None:
    console.print(f"Run {gate['run']}", highlight=False)
    console.print(_comparison_table(comparison))
    console.print(f"Winner: {comparison['winner']} ({comparison['reason']}).", markup=False, highlight=False)
    console.print(f"Gate: {verdict(gate)}", style="bold", markup=False, highlight=False)
    for reason in gate["reasons"]:
        console.print(f"  - {reason}", markup=False, highlight=False)
    if stable := gate["serving"].get(STABLE):
        console.print(f"Stable version: {stable}.", highlight=False)
    if has_random_weights(comparison):
        console.print(RANDOM_WEIGHTS_NOTE, style="yellow")


def _show_ingest(console: Console, ingest: dict[str, Any]) -> None:
    table = Table(title=f"{ingest['photos']} of {ingest['files']} files used", title_justify="left", title_style="")
    table.add_column("breed")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for breed, counts in ingest["breeds"].items():
        table.add_row(Text(breed), *(str(counts[split]) for split in SPLITS))
    console.print(table)
    for reason, counts in ingest.get("captured", {}).items():
        splits = ", ".join(f"{counts[split]} in {split}" for split in SPLITS)
        console.print(f"Accepted photos of captured requests, reason {reason}: {splits}", markup=False, highlight=False)
    for kind, rows in excluded_by_kind(ingest).items():
        console.print(f"{kind}: {len(rows)} excluded", style="bold", markup=False, highlight=False)
        for row in rows:
            console.print(f"  {row['path']}: {row['reason']}", markup=False, highlight=False, soft_wrap=True)


def _comparison_table(comparison: dict[str, Any]) -> Table:
    """Return the comparison with one column per candidate; three candidates fit in 60 terminal columns."""
    sizes, winner = comparison["split_sizes"], comparison["winner"]
    title = f"{len(comparison['breeds'])} breeds; photos: " + ", ".join(f"{n} {split}" for split, n in sizes.items())
    table = Table(title=title, title_justify="left", title_style="", caption_justify="left", caption_style="")
    rows = comparison["candidates"]
    table.add_column("")
    for row in rows:
        style = "bold" if row["backbone"] == winner else None
        table.add_column(row["backbone"], justify="right", style=style, header_style=style)
    if is_out_of_fold(comparison):
        table.caption = "OOF: out of fold, on train + eval; pt: points of accuracy"
    for heading, key, cell in _TABLE_ROWS:
        if all(key in row for row in rows):
            shown = ["" if key in _DIFFERENCES and row["backbone"] == winner else cell(row[key]) for row in rows]
            table.add_row(heading, *shown)
    return table


def _points(difference: float) -> str:
    """A difference of accuracies in points; an interval of two of them has at most nine characters."""
    points = 100 * difference
    return f"{points:+.1f}" if abs(points) < 9.95 else f"{points:+.0f}"
