"""RetrainGate: ends a run after ingestion if a pushed version was trained from the same inputs."""

import json
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component

from components.artifacts import IngestReport, Markdown, RetrainDecision
from components.candidates.backbone import weights_source
from components.candidates.model_file import check_model_file
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
    """Compare the inputs of this run with the inputs of the pushed versions.

    Args:
        registry: Base path of the pushed models.
        backbones: JSON list of the backbones; each has a name, image_size, precision, layers, licence and model_file,
            which is "" if the backbone is a built-in one.
        weights: "imagenet" or "random", the weights of built-in backbones.
        weights_dir: Folder with the ImageNet weights, or "".
        settings: All other settings that a model depends on, in JSON.
        modules: Names of the modules that train a model, separated by spaces.

    Raises:
        WeightsError: If `weights_dir` has no weights for a backbone, or a model file cannot be a backbone.
    """
    networks = json.loads(backbones)
    photos = read_json_lines(ingest.uri, PHOTOS_FILE)
    origin = {
        "data": json_digest(sorted((r["content_hash"], r["breed"], r["split"]) for r in photos if "split" in r)),
        "code": code_digest(*modules.split()),
        "weights": {network["name"]: _weights_digest(network, weights, weights_dir) for network in networks},
        # The content of a file counts, not where it is.
        "backbones": [{key: value for key, value in network.items() if key != "model_file"} for network in networks],
        "settings": settings,
    }
    digest = json_digest(origin)
    version = Registry(registry).find_by_inputs_digest(digest)
    write_json(decision.uri, RETRAIN_FILE, {"inputs_digest": digest, "origin": origin, "version": version})
    decision.set_int_custom_property("retrain", int(version is None))
    write_page(summary, _summary(version, origin))


def _weights_digest(network: dict[str, Any], weights: str, weights_dir: str) -> str:
    if path := network["model_file"]:
        check_model_file(network["name"], path, network["image_size"], network["layers"])
        return file_digest(path)
    source = weights_source(network["name"], weights, weights_dir)
    return file_digest(source) if weights_dir else source


def _summary(version: int | None, origin: dict[str, Any]) -> str:
    inputs = "trained from this data, code, weights and settings"
    verdict = (
        f"**New**: no pushed version was {inputs}. The run continues."
        if version is None
        else f"**Nothing new**: version {version} was {inputs}. The run ends here."
    )
    return f"{verdict}\n\n- data `{origin['data'][:12]}`\n- code `{origin['code'][:12]}`\n"
