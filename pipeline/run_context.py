"""Where the graph runs: what a run on this machine knows beforehand, and a compiled pipeline only finds out at work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfx.orchestration.data_types import RuntimeParameter

from components.candidates.backbone import find_weights
from components.digests import code_digest, file_digest
from components.ingestion.photo_source import open_source
from components.local_copies import is_remote
from components.release.champion_model import stable_identity
from pipeline.datasets.schema_file import SCHEMA_FILE, read_schema
from pipeline.settings import ROOT, Settings, SettingsError, to_yaml
from serving.registry import Registry


@dataclass(frozen=True)
class RunContext:
    """What the graph is told by the runner.

    Attributes:
        data: folder or archive of photos.
        data_digest: of the photos, for the cache; "" where it cannot be known before the run.
        weights_dir: folder with ImageNet weights, "" for none.
        weights_digest: backbone -> digest of its weights file, for the cache; "" where there is none, or not known yet.
        registry: base path of the pushed models.
        stable: see `components.release.champion_model.stable_identity`; None where the run has to look.
        schema_file: where the schema of the photos came from, for people.
        gate: the rules of the gate; truth values as 1 and 0, for TFX's parameters of a run have none.
        code_digest: modules -> digest of what they run, for the cache; "" where the image's name stands for its code.
        run_id: differs in each run.
        run_date, schedule_time: see `components.release.pusher.resolve_run_date`.
        settings: the settings in YAML, for the record.
        in_cluster: a run ends early when nothing is new, and reports by itself; on this machine the cache makes that
            quick, and the command line reports.
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
    """The file that says what photos must look like.

    Raises:
        SettingsError: it is not there, or no schema.
    """
    path = Path(settings.photos_schema or ROOT / "schemas" / "photos").resolve() / SCHEMA_FILE
    if not path.is_file():
        raise SettingsError(f"photos_schema: {path}: no such file; `catbreeds schema update` writes one")
    try:
        read_schema(path)
    except (ValueError, OSError) as error:
        raise SettingsError(f"photos_schema: {path}: cannot be read: {error}") from None
    return path


def _absolute(path: str) -> str:
    """The path from the root on; "" and addresses such as gs://... as they are."""
    return path if not path or is_remote(path) else str(Path(path).resolve())


def local_run_context(settings: Settings, run_id: str) -> RunContext:
    """A run here: everything is looked at beforehand, so that the cache sees what has changed.

    Args:
        settings: `data` must be given.
        run_id: differs in each run.

    Raises:
        DataError: there are no photos in `data`.
        SettingsError: there is no schema.
    """
    data, weights_dir = _absolute(settings.data), _absolute(settings.weights_dir or "")
    return RunContext(
        data=data,
        data_digest=open_source(data).digest(),
        weights_dir=weights_dir,
        weights_digest=lambda backbone: file_digest(find_weights(backbone, weights_dir)) if weights_dir else "",
        registry=str(settings.registry),
        stable=stable_identity(Registry(settings.registry)),
        schema_file=str(photos_schema(settings)),
        gate={name: int(rule) if isinstance(rule, bool) else rule for name, rule in settings.gate.model_dump().items()},
        code_digest=code_digest,
        run_id=run_id,
        run_date="",
        schedule_time="",
        settings=to_yaml(settings),
        in_cluster=False,
    )
