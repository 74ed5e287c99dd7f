"""ChampionModel: copies the stable version into the pipeline as the champion for the gate."""

from pathlib import Path
from typing import Any

import tensorflow as tf
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Model
from tfx.utils import io_utils, path_utils

from components.file_names import CHAMPION_FILE
from components.json_files import read_json, read_json_lines, write_json
from components.stable_version import stable_version
from serving.model_files import LEARNED_PHOTOS_FILE, MODEL_RECORD_FILE, REFERENCE_PHOTOS_FILE
from serving.registry import Registry


@component
def ChampionModel(
    candidate: InputArtifact[Model],
    champion: OutputArtifact[Model],
    registry: Parameter[str],
    code_digest: Parameter[str],
    stable: Parameter[str] = None,
):
    """Copy the stable version if `candidate` can be compared with it, and describe it in champion.json.

    The version is not copied if it is identical to `candidate`, has other breeds or cannot be loaded. The pipeline
    continues in these cases, and ModelGate reports the consequence.

    Args:
        registry: Base path of the pushed models.
        code_digest: Digest of the modules that this component runs.
        stable: Result of `stable_identity`, part of the cache key: an unchanged champion is not copied again. If
            None, the component reads the label when it runs.
    """
    models = Registry(registry)
    # The version at the start of the run, even if another one has been promoted since.
    version = stable_version(models, stable)
    if version is None:
        write_json(champion.uri, CHAMPION_FILE, None)
        return
    record = read_json(path_utils.serving_model_path(candidate.uri), MODEL_RECORD_FILE)
    info = _describe(models, version, record["model_digest"])
    if not (info["unreadable"] or info["is_candidate"]) and set(info["breeds"]) == set(record["breeds"]):
        io_utils.copy_dir(str(models.path(version)), path_utils.serving_model_dir(champion.uri))
    write_json(champion.uri, CHAMPION_FILE, {"version": version, **info})
    champion.set_int_custom_property("version", version)


def _describe(models: Registry, version: int, candidate_digest: str) -> dict[str, Any]:
    """Contents of champion.json for a version, without its number."""
    path = models.path(version)
    try:
        record = models.record(version)
        info = {
            "backbone": record["backbone"]["architecture"],
            "model_digest": record["model_digest"],
            "breeds": record["breeds"],
            "is_candidate": record["model_digest"] == candidate_digest,
        }
        missing = {"serving_default", "transform_labels"} - tf.saved_model.load(str(path)).signatures.keys()
        if missing:
            raise ValueError(f"missing signatures: {', '.join(sorted(missing))}")
        return {**info, "learned": _learned_photos(path), "tested": _tested_photos(path), "unreadable": None}
    except Exception as error:  # TensorFlow raises almost any exception for a damaged SavedModel
        first_line = str(error).strip().partition("\n")[0]
        return {"unreadable": f"{path}: {type(error).__name__}: {first_line}"}


def _learned_photos(version: Path) -> list[str]:
    """Content hashes of the photos that a version learned from; none if an earlier release pushed it."""
    path = version / LEARNED_PHOTOS_FILE
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _tested_photos(version: Path) -> list[str] | None:
    """Content hashes of the photos that a version was tested on; None if an earlier release pushed it."""
    if not (version / REFERENCE_PHOTOS_FILE).is_file():
        return None
    return [row["content_hash"] for row in read_json_lines(str(version), REFERENCE_PHOTOS_FILE)]
