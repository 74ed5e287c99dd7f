"""RetrainGate: looks right after ingestion whether a model that was pushed has the same origin; then nothing is new."""

from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component

from components.artifacts import IngestReport, Markdown, RetrainDecision
from components.candidates.backbone import weights_source
from components.digests import code_digest, file_digest, json_digest
from components.file_names import PHOTOS_FILE, RETRAIN_FILE
from components.json_files import read_json_lines, write_json
from components.kubeflow_ui import write_page
from serving.registry import Registry


@component
def RetrainGate(
    ingest: InputArtifact[IngestReport],
    decision: OutputArtifact[RetrainDecision],
    summary: OutputArtifact[Markdown],
    registry: Parameter[str],
    backbones: Parameter[str],
    weights: Parameter[str],
    weights_dir: Parameter[str],
    settings: Parameter[str],
    modules: Parameter[str],
):
    """Compares what a model would be made from with what the pushed versions were made from.

    Args:
        registry: base path of the pushed models.
        backbones: the architectures, with spaces between.
        weights: "imagenet" or "random".
        weights_dir: folder with the ImageNet weights, or "".
        settings: all that a model depends on, in JSON.
        modules: those that make a model, with spaces between.

    Raises:
        WeightsError: `weights_dir` has no weights for a backbone.
    """
    photos = read_json_lines(ingest.uri, PHOTOS_FILE)
    origin = {
        "data": json_digest(sorted((r["content_hash"], r["breed"], r["split"]) for r in photos if "split" in r)),
        "code": code_digest(*modules.split()),
        "weights": {backbone: _weights_digest(backbone, weights, weights_dir) for backbone in backbones.split()},
        "settings": settings,
    }
    digest = json_digest(origin)
    version = Registry(registry).find_by_inputs_digest(digest)
    write_json(decision.uri, RETRAIN_FILE, {"inputs_digest": digest, "origin": origin, "version": version})
    decision.set_int_custom_property("retrain", int(version is None))
    write_page(summary, _summary(version, origin))


def _weights_digest(backbone: str, weights: str, weights_dir: str) -> str:
    source = weights_source(backbone, weights, weights_dir)
    return file_digest(source) if weights_dir else source


def _summary(version: int | None, origin: dict[str, Any]) -> str:
    same = "made from this data, code, weights and settings"
    verdict = (
        f"**New**: no pushed version was {same}. The run goes on."
        if version is None
        else f"**Nothing new**: version {version} was {same}. The run ends here."
    )
    return f"{verdict}\n\n- data `{origin['data'][:12]}`\n- code `{origin['code'][:12]}`\n"
