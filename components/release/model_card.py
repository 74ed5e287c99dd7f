"""The model card that goes with each pushed version: what it is, what it learned from, how sure we are, its limits."""

from collections import Counter
from typing import Any, NamedTuple

from components.candidates.architectures import ARCHITECTURES
from components.ingestion.splits import SPLITS
from components.reporting.pages import render


class Statements(NamedTuple):
    """What no program can find out; see `model_card` in the settings."""

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
    """The card as JSON, with the sections that Mitchell et al. propose (Model Cards for Model Reporting, FAT* 2019).

    Args:
        name: of the model.
        version: that it gets.
        statements: of the people who run the pipeline.
        record: see `serving.model_files`.
        ingest: report.json of ImageExampleGen.
        metrics: metrics.json of the Evaluator, on test.
        admission: what Pusher notes of the push.
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
            "weights": backbone["weights"],
            "weights_licence": _weights_licence(backbone),
            "image_size": backbone["image_size"],
            "parameters": record["parameters"],
            "hyperparameters": record["hyperparameters"],
            "input": "bytes of a JPEG or PNG photo of any size",
            "output": "a probability for each breed",
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
            "balanced_accuracy": gate["candidate"]["balanced_accuracy"],
        },
        "limits": _limits(record, metrics, gate),
        "admission": {
            key: gate[key] for key in ("reasons", "rules", "majority", "comparison", "not_compared", "champion")
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
    """The card as a self-contained HTML page."""
    return render("model_card", card=card)


def _weights_licence(backbone: dict[str, Any]) -> str:
    if backbone["weights"] == "random":
        return "none: the weights are random"
    return (
        f"{ARCHITECTURES[backbone['architecture']].licence}, as published with Keras; trained on ImageNet "
        "(ILSVRC 2012), whose images are for non-commercial research"
    )


def _limits(record: dict[str, Any], metrics: dict[str, Any], gate: dict[str, Any]) -> list[str]:
    breeds, min_slice = sorted(record["breeds"]), gate["rules"]["min_slice"]
    limits = [
        f"It knows {len(breeds)} breeds and answers one of them for any photo, also of a cat of another breed, of "
        "several cats, or of no cat at all.",
        "It was measured on photos of the same collection that it learned from; on others it may be worse.",
    ]
    if record["backbone"]["weights"] == "random":
        limits.insert(0, "Its backbone has random weights: it is for show, not for use.")
    tested = {breed: metrics["breeds"][breed]["photos"] if breed in metrics["breeds"] else 0 for breed in breeds}
    if never := [f"{breed} (0 of {photos})" for breed, photos in gate["candidate"]["never_recognised"].items()]:
        limits.append(f"Breeds that it did not recognise on any test photo: {', '.join(never)}.")
    few = [f"{breed} ({photos})" for breed, photos in tested.items() if photos < min_slice]
    if few:
        limits.append(f"Breeds with fewer than {min_slice} test photos, whose accuracy is uncertain: {', '.join(few)}.")
    return limits
