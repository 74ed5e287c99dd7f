"""What a run leaves for people: comparison.json, gate.json and index.html in `report/`, a summary on the terminal."""

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
from components.reporting.run_summary import Sources, gather, is_random, left_out_by_kind, verdict
from pipeline.settings import Settings, to_yaml
from serving.labels import STABLE

if TYPE_CHECKING:
    from pipeline.runners.local import NodeRun

INGEST_FILE = "ingest.json"
_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "eval accuracy": lambda row: f"{row['eval_accuracy']:.3f}",
    "95 % interval": lambda row: "{:.2f}-{:.2f}".format(*row["eval_accuracy_ci95"]),
    "loss": lambda row: f"{row['eval_loss']:.2f}",
    "top-3": lambda row: f"{row['top3_accuracy']:.3f}",
    "embed s": lambda row: f"{row['embedding_seconds']:.0f}",
    "tune s": lambda row: f"{row['tuning_seconds']:.0f}",
    "train s": lambda row: f"{row['training_seconds']:.0f}",
    "params": lambda row: f"{row['parameters'] / 1e6:.1f}M",
    "MB": lambda row: f"{row['saved_model_bytes'] / 1e6:.0f}",
    "ms": lambda row: f"{row['latency_ms_p50']:.0f}",
}


def read_ingest(run: "NodeRun") -> dict[str, Any]:
    """What ImageExampleGen found: counts by breed and split, and every file left out."""
    return _read(Path(run.outputs["report"]) / INGEST_REPORT_FILE)


def write_ingest(folder: Path, ingest: dict[str, Any]) -> None:
    """Writes that for people, into the report's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INGEST_FILE).write_text(json.dumps(ingest, indent=1), encoding="utf-8")


def show_saved(console: Console, folder: Path, data: bool) -> None:
    """What the last run left in `folder`: the comparison and the verdict, or what was found in the data.

    Raises:
        FileNotFoundError: no run has come so far.
        DamagedFileError: a document is no JSON.
    """
    if data:
        _show_ingest(console, _read(folder / INGEST_FILE))
        return
    _show_decision(console, _read(folder / COMPARISON_FILE), _read(folder / GATE_FILE))
    console.print(f"Report: {folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


def _read(path: Path) -> Any:
    return read_json(str(path.parent), path.name)


def collect(runs: dict[str, "NodeRun"], settings: Settings, run_id: str) -> dict[str, Any]:
    """All that a run found, from the documents that its components wrote; see `components.reporting.run_summary`."""

    def uris(node: str, key: str) -> dict[str, str]:
        return {name: runs[f"{node}-{name}"].outputs[key] for name in settings.backbones}

    sources = Sources(
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
    return gather(sources, settings.registry, run_id, to_yaml(settings))


def write(folder: Path, documents: dict[str, Any]) -> Path:
    """Writes the three files into `folder`; gives the page's path."""
    from components.reporting.report_page import report_page

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("comparison", "gate"):
        (folder / f"{name}.json").write_text(json.dumps(documents[name], indent=1), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(report_page(documents), encoding="utf-8")
    return page


def show(console: Console, documents: dict[str, Any]) -> None:
    """The comparison and the verdict, for the terminal."""
    for warning in documents["data"]["warnings"]:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    left_out = documents["ingest"]["left_out"]
    if left_out:
        console.print(f"Files left out: {len(left_out)}; `catbreeds report --photos` names each.", style="yellow")
    _show_decision(console, documents["comparison"], documents["gate"])


def _show_decision(console: Console, comparison: dict[str, Any], gate: dict[str, Any]) -> None:
    console.print(f"Run {gate['run']}", highlight=False)
    console.print(_table(comparison))
    console.print(f"Winner: {comparison['winner']} ({comparison['reason']}).", markup=False, highlight=False)
    console.print(f"Gate: {verdict(gate)}", style="bold", markup=False, highlight=False)
    for reason in gate["reasons"]:
        console.print(f"  - {reason}", markup=False, highlight=False)
    if serving := gate["serving"].get(STABLE):
        console.print(f"In service: version {serving}.", highlight=False)
    if is_random(comparison):
        console.print(
            "These backbones have random weights: they show the pipeline at work, not how good a classifier can be. "
            "For that, use ImageNet weights (the standard profile).",
            style="yellow",
        )


def _show_ingest(console: Console, ingest: dict[str, Any]) -> None:
    table = Table(title=f"{ingest['photos']} photos of {ingest['files']} files", title_justify="left", title_style="")
    table.add_column("breed")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for breed, counts in ingest["breeds"].items():
        table.add_row(Text(breed), *(str(counts[split]) for split in SPLITS))
    console.print(table)
    for kind, rows in left_out_by_kind(ingest).items():
        console.print(f"{kind}: {len(rows)} left out", style="bold", markup=False, highlight=False)
        for row in rows:
            console.print(f"  {row['path']}: {row['reason']}", markup=False, highlight=False, soft_wrap=True)


def _table(comparison: dict[str, Any]) -> Table:
    """A column for each candidate: three of them fit a terminal of 60 columns."""
    sizes = comparison["split_sizes"]
    title = f"{len(comparison['breeds'])} breeds; photos: " + ", ".join(f"{n} {split}" for split, n in sizes.items())
    table = Table(title=title, title_justify="left", title_style="")
    rows = comparison["candidates"]
    table.add_column("")
    for row in rows:
        style = "bold" if row["backbone"] == comparison["winner"] else None
        table.add_column(row["backbone"], justify="right", style=style, header_style=style)
    for heading, cell in _ROWS.items():
        table.add_row(heading, *map(cell, rows))
    return table
