"""Values of the graph that depend on the runner.

On one machine they are known before the run starts; in a compiled pipeline many are parameters of each run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfx.orchestration.data_types import RuntimeParameter

from components.candidates.backbone import find_weights
from components.digests import code_digest, file_digest
from components.ingestion.photo_source import open_source
from components.local_copies import is_remote
from components.stable_version import stable_identity
from pipeline.datasets.schema_file import PROJECT_SCHEMA, SCHEMA_FILE, read_schema
from pipeline.settings import Settings, SettingsError, to_json
from serving.registry import Registry


@dataclass(frozen=True)
class RunContext:
    """Values that the runner passes to `pipeline.graph.create_pipeline`.

    Attributes:
        data: Folder or archive of photos.
        data_digest: Digest of the photos, part of the cache key; "" if it is not known before the run.
        weights_dir: Folder with ImageNet weights, or "".
        weights_digest: Function that maps a backbone to the digest of the file with its weights or its model, part of
            the cache key; it returns "" if there is no file or it is not known before the run.
        registry: Base path of the pushed models.
        stable: Result of `components.stable_version.stable_identity`; None if the run must determine it.
        schema_file: Path of the photos' schema, for display.
        gate: Rules of the gate, with booleans as 1 and 0, because TFX has no boolean runtime parameters.
        code_digest: Function that maps modules to the digest of their source code, part of the cache key; it returns ""
            if the image tag identifies the code.
        run_id: Unique ID of the run.
        run_date, schedule_time: Arguments of `components.release.pusher.resolve_run_date`.
        settings: Settings of the pipeline as a JSON object, for the model's record.
        in_cluster: Whether the graph includes RetrainGate, RunReport and GatePassed. On one machine, the cache replaces
            RetrainGate, and the command line shows the report and the exit code.
    """

    data: str | RuntimeParameter
    data_digest: str
    weights_dir: str | RuntimeParameter
    weights_digest: Callable[[str], str]
    registry: str | RuntimeParameter
    stable: str | None
    schema_file: str
    gate: dict[str, Any]
    code_digest: Callable[..., str]
    run_id: str
    run_date: str | RuntimeParameter
    schedule_time: str
    settings: str
    in_cluster: bool


def photos_schema(settings: Settings) -> Path:
    """Path of the schema that photos must match.

    Raises:
        SettingsError: If the file does not exist or is not a schema.
    """
    path = Path(settings.photos_schema or PROJECT_SCHEMA.parent).resolve() / SCHEMA_FILE
    if not path.is_file():
        raise SettingsError(f"photos_schema: {path}: no such file; create it with `catbreeds schema update`")
    try:
        read_schema(path)
    except (ValueError, OSError) as error:
        raise SettingsError(f"photos_schema: {path}: cannot be read: {error}") from None
    return path


def _absolute_path(path: str) -> str:
    """Make a local path absolute; keep "" and URIs such as gs://... unchanged."""
    return path if not path or is_remote(path) else str(Path(path).resolve())


def local_run_context(settings: Settings, run_id: str) -> RunContext:
    """Create the context of a run on this machine, with all digests, so that the cache detects changes.

    Args:
        settings: Settings of the run; `data` must be set.
        run_id: Unique ID of the run.

    Raises:
        DataError: If `data` contains no photos.
        SettingsError: If the schema of the photos is missing or invalid.
    """
    data, weights_dir = _absolute_path(settings.data), _absolute_path(settings.weights_dir or "")

    def weights_digest(backbone: str) -> str:
        if backbone in settings.model_files:
            return file_digest(settings.model_files[backbone].model)
        return file_digest(find_weights(backbone, weights_dir)) if weights_dir else ""

    return RunContext(
        data=data,
        data_digest=open_source(data).digest(),
        weights_dir=weights_dir,
        weights_digest=weights_digest,
        registry=str(settings.registry),
        stable=stable_identity(Registry(settings.registry)),
        schema_file=str(photos_schema(settings)),
        gate={name: int(rule) if isinstance(rule, bool) else rule for name, rule in settings.gate.model_dump().items()},
        code_digest=code_digest,
        run_id=run_id,
        run_date="",
        schedule_time="",
        settings=to_json(settings),
        in_cluster=False,
    )
