"""Read-only access to the ML Metadata records of the runs in a workdir; does not import TensorFlow."""

import contextlib
import datetime
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_metadata import errors, metadata_store
from ml_metadata.proto import metadata_store_pb2

from components.errors import HistoryError

_FINISHED = {metadata_store_pb2.Execution.COMPLETE, metadata_store_pb2.Execution.CACHED}
_Event = metadata_store_pb2.Event


@dataclass(frozen=True)
class Artifact:
    """An artifact of a component.

    Attributes:
        id: ID in ML Metadata.
        type: Name of the artifact type.
        uri: URI of the artifact.
        properties: Custom properties.
    """

    id: int
    type: str
    uri: str
    properties: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Execution:
    """A finished or cached execution of a component.

    Attributes:
        id: ID in ML Metadata.
        node: ID of the component in the graph.
        run: ID of the run.
        cached: Whether the outputs come from an earlier execution.
        finished_at: Time of completion in UTC, in ISO 8601 format.
        properties: Execution properties.
        inputs: Input artifacts by key.
        outputs: Output artifacts by key.
    """

    id: int
    node: str
    run: str
    cached: bool
    finished_at: str
    properties: dict[str, Any] = field(hash=False)
    inputs: dict[str, list[Artifact]] = field(hash=False)
    outputs: dict[str, list[Artifact]] = field(hash=False)


class RunHistory:
    """The finished executions of a workdir.

    Args:
        workdir: Workdir of `catbreeds run`.

    Raises:
        HistoryError: If `workdir` has no metadata of a run, or the metadata cannot be read.
    """

    def __init__(self, workdir: str | Path):
        path = Path(workdir) / "metadata.sqlite"
        try:
            path.open("rb").close()  # ML Metadata does not report why it cannot open a file
        except (FileNotFoundError, NotADirectoryError):
            raise HistoryError(f"{path}: not found; `catbreeds run` creates it") from None
        except OSError as error:
            raise HistoryError(f"{path}: cannot be read: {error.strerror}") from None
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
        self._path = path
        with self._history_errors():
            self._store = metadata_store.MetadataStore(config)

    def last_run(self, node: str) -> str:
        """Return the ID of the newest run that finished `node`.

        Raises:
            HistoryError: If no run finished it.
        """
        runs = {execution.id: execution.run for execution in self._executions.values() if execution.node == node}
        if not runs:
            raise HistoryError(f"{self._path}: no run has finished {node}")
        return runs[max(runs)]

    def execution(self, run: str, node: str) -> Execution:
        """Return the execution of `node` in a run.

        Raises:
            HistoryError: If the run did not finish `node`.
        """
        for execution in self._executions.values():
            if (execution.run, execution.node) == (run, node):
                return execution
        runs = sorted({e.run for e in self._executions.values() if e.node == node})
        others = ", ".join(runs) or "none"
        raise HistoryError(f"{self._path}: run {run!r} has no finished {node}; runs that have one: {others}")

    def producer(self, artifact: Artifact) -> Execution:
        """Return the execution that created an artifact, as opposed to executions that reused it from the cache."""
        return self._producers[artifact.id]

    @cached_property
    def _executions(self) -> dict[int, Execution]:
        with self._history_errors():
            return {execution.id: execution for execution in self._read()}

    @cached_property
    def _producers(self) -> dict[int, Execution]:
        return {
            artifact.id: execution
            for execution in self._executions.values()
            if not execution.cached
            for artifacts in execution.outputs.values()
            for artifact in artifacts
        }

    @contextlib.contextmanager
    def _history_errors(self) -> Iterator[None]:
        try:
            yield
        except (errors.StatusError, RuntimeError) as error:
            first_line = str(error).partition("\n")[0]
            raise HistoryError(f"{self._path}: damaged, or in use by another process: {first_line}") from None

    def _read(self) -> Iterator[Execution]:
        executions = [e for e in self._store.get_executions() if e.last_known_state in _FINISHED]
        artifacts = {
            a.id: Artifact(a.id, a.type, a.uri, _property_values(a.custom_properties))
            for a in self._store.get_artifacts()
        }
        events = defaultdict(list)
        for event in self._store.get_events_by_execution_ids([e.id for e in executions]) if executions else []:
            events[event.execution_id].append(event)
        for execution in executions:
            names = {c.type: c.name for c in self._store.get_contexts_by_execution(execution.id)}
            io_artifacts = {_Event.INPUT: defaultdict(list), _Event.OUTPUT: defaultdict(list)}
            for event in events[execution.id]:
                if event.type in io_artifacts:
                    io_artifacts[event.type][event.path.steps[0].key].append(artifacts[event.artifact_id])
            yield Execution(
                id=execution.id,
                node=names["node"].partition(".")[2],
                run=names["pipeline_run"],
                cached=execution.last_known_state == metadata_store_pb2.Execution.CACHED,
                finished_at=_format_time(execution.last_update_time_since_epoch),
                properties=_property_values(execution.custom_properties),
                inputs=dict(io_artifacts[_Event.INPUT]),
                outputs=dict(io_artifacts[_Event.OUTPUT]),
            )


def _property_values(properties) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("value")) for name, value in sorted(properties.items())}


def _format_time(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="seconds")
