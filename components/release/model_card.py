"""Model card of a pushed version: model details, training data, metrics with uncertainty, and limitations."""

from collections import Counter
from typing import Any, NamedTuple

from components.candidates.architectures import weights_licence
from components.candidates.hyperparameters import describe_hyperparameters
from components.conformal import explanation_sentences
from components.ingestion.splits import SPLITS
from components.reporting.html_templates import render
from serving.precision import precision_of


class Statements(NamedTuple):
    """Facts that the operator provides because no program can determine them; see `model_card` in the settings."""

    data_source: str
    data_licence: str
    contact: str


def model_card(
    name: str,
    version: int,
    statements: Statements,
    record: dict[str, Any],
    ingest: dict[str, Any],
    metrics: dict[str, Any],
    admission: dict[str, Any],
) -> dict[str, Any]:
    """Return the card as JSON, with the sections of Model Cards for Model Reporting (Mitchell et al., FAT* 2019).

    Args:
        name: Name of the model.
        version: Number of the pushed version.
        statements: Facts from the operator.
        record: Model record; see `serving.model_files`.
        ingest: Contents of report.json from ImageExampleGen.
        metrics: Contents of metrics.json from the Evaluator, on test.
        admission: Contents of admission.json, written by Pusher.
    """
    backbone, gate = record["backbone"], admission["gate"]
    breeds = ingest["breeds"]
    return {
        "name": name,
        "version": version,
        "pushed_at": admission["pushed_at"],
        "contact": statements.contact,
        "model": {
            "backbone": backbone["architecture"],
            "backbones": [_backbone(part) for part in backbone.get("parts", [backbone])],
            "parameters": record["parameters"],
            "hyperparameters": record["hyperparameters"],
            "input": "the bytes of a JPEG or PNG photo of any size",
            "output": "a probability for each breed"
            + (
                ", the breeds that the photo may show, and a flag for a photo unlike all training photos"
                if (record.get("explain") or {}).get("set_threshold") is not None
                else ""
            ),
        },
        "breeds": sorted(record["breeds"]),
        "data": {
            "source": statements.data_source,
            "licence": statements.data_licence,
            "files": ingest["files"],
            "photos": ingest["photos"],
            "splits": {split: sum(counts[split] for counts in breeds.values()) for split in SPLITS},
            "breeds": breeds,
            "left_out": dict(sorted(Counter(row["kind"] for row in ingest["left_out"]).items())),
        },
        "metrics": {
            "split": "test",
            **{key: metrics[key] for key in ("overall", "breeds", "calibration")},
            "explain": metrics.get("explain"),
            "balanced_accuracy": gate["candidate"]["balanced_accuracy"],
        },
        "limits": _limitations(record, metrics, gate),
        "admission": {
            key: gate[key]
            for key in ("reasons", "rules", "majority", "comparison", "power", "not_compared", "champion")
        },
        "lineage": {
            "run": admission["run_id"],
            "commit": admission["commit"],
            "artifact": admission["model_uri"],
            **{key: record[key] for key in ("model_digest", "data_digest", "code_digest")},
            "weights_digest": backbone["weights_digest"],
        },
    }


def card_page(card: dict[str, Any]) -> str:
    """Return the card as a self-contained HTML page."""
    return render(
        "model_card",
        card=card,
        head=describe_hyperparameters(card["model"]["hyperparameters"]),
        explanation=explanation_sentences(card["metrics"]["explain"]),
    )


def _backbone(record: dict[str, Any]) -> dict[str, Any]:
    """Facts about one backbone. Records from before backbones had a name and a licence are of built-in ones."""
    architecture, weights = record["architecture"], record["weights"]
    return {
        "name": record.get("name", architecture),
        "weights": weights,
        "licence": record.get("licence") or weights_licence(architecture, weights),
        "image_size": record["image_size"],
        "precision": precision_of({"backbone": record}),
    }


def _limitations(record: dict[str, Any], metrics: dict[str, Any], gate: dict[str, Any]) -> list[str]:
    breeds, min_slice = sorted(record["breeds"]), gate["rules"]["min_slice"]
    limitations = [
        f"The model always predicts one of its {len(breeds)} breeds, even for a photo of another breed, of several "
        "cats or of no cat.",
        "The test photos come from the same collection as the training photos; accuracy on other photos may be lower.",
    ]
    if (metrics.get("explain") or {}).get("flagged"):
        limitations.append(
            "The flag for unfamiliar photos is meant for photos without a cat; it misses most cats of other breeds."
        )
    backbones = record["backbone"].get("parts", [record["backbone"]])
    if any(backbone["weights"] == "random" for backbone in backbones):
        limitations.insert(0, "A backbone has random weights: use this model for demonstrations only.")
    if missed := [f"{breed} (0 of {photos})" for breed, photos in gate["candidate"]["never_recognised"].items()]:
        limitations.append(f"Breeds without a correct prediction on test: {', '.join(missed)}.")
    photos_of = {breed: metrics["breeds"][breed]["photos"] if breed in metrics["breeds"] else 0 for breed in breeds}
    if small := [f"{breed} ({photos})" for breed, photos in photos_of.items() if photos < min_slice]:
        limitations.append(
            f"Breeds with fewer than {min_slice} test photos, whose accuracy is uncertain: {', '.join(small)}."
        )
    return limitations
