"""ChampionModel: brings the model in service into the pipeline, or says there is none to compare with."""

from typing import Any

import tensorflow as tf
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Model
from tfx.utils import io_utils, path_utils

from components.digests import json_digest
from components.file_names import CHAMPION_FILE
from components.json_files import read_json, write_json
from serving.model_files import LEARNED_PHOTOS_FILE, MODEL_RECORD_FILE
from serving.registry import Registry


def stable_identity(registry: Registry) -> str:
    """Version of the model in service and the state of its files, "" for none: what ChampionModel's answer rests on."""
    version = registry.stable()
    if version is None:
        return ""
    files = sorted(path for path in registry.path(version).rglob("*") if path.is_file())
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{version}@{json_digest(states)}"


def stable_version(registry: Registry, identity: str | None) -> int | None:
    """The version in service: the one in an answer of `stable_identity`, or for None what the registry says now."""
    if identity is None:
        return registry.stable()
    return int(identity.partition("@")[0]) if identity else None


@component
def ChampionModel(
    candidate: InputArtifact[Model],
    champion: OutputArtifact[Model],
    registry: Parameter[str],
    code_digest: Parameter[str],
    stable: Parameter[str] = None,
):
    """Copies the version labelled stable if `candidate` can be compared with it; champion.json says what it is.

    It is not copied when it is what `candidate` is, when it knows other breeds, or cannot be read: that stops nothing,
    and ModelGate says what follows from it.

    Args:
        registry: base path of the pushed models.
        code_digest: of the modules that it runs.
        stable: see `stable_identity`; an unchanged champion is not brought again. None: the registry is asked now.
    """
    models = Registry(registry)
    version = stable_version(models, stable)  # as the run found it, though somebody promote another one meanwhile
    if version is None:
        write_json(champion.uri, CHAMPION_FILE, None)
        return
    record = read_json(path_utils.serving_model_path(candidate.uri), MODEL_RECORD_FILE)
    info = _inspect(models, version, record["model_digest"])
    if not (info["unreadable"] or info["is_candidate"]) and set(info["breeds"]) == set(record["breeds"]):
        io_utils.copy_dir(str(models.path(version)), path_utils.serving_model_dir(champion.uri))
    write_json(champion.uri, CHAMPION_FILE, {"version": version, **info})
    champion.set_int_custom_property("version", version)


def _inspect(models: Registry, version: int, candidate_digest: str) -> dict[str, Any]:
    """What champion.json says of a version."""
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
            raise ValueError(f"no signature {', '.join(sorted(missing))}")
        learned = path / LEARNED_PHOTOS_FILE
        known = learned.read_text(encoding="utf-8").split() if learned.is_file() else []
        return {**info, "learned": known, "unreadable": None}
    except Exception as error:  # a damaged SavedModel leads TensorFlow to raise almost anything
        first_line = str(error).strip().partition("\n")[0]
        return {"unreadable": f"{path}: {type(error).__name__}: {first_line}"}
