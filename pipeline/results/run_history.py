"""What ML Metadata remembers of the runs in a workdir. Reads only, and without TensorFlow."""

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
    """Something that a component wrote.

    Attributes:
        id: in ML Metadata.
        type: its type name.
        uri: where it is.
        properties: custom properties.
    """

    id: int
    type: str
    uri: str
    properties: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Execution:
    """A component that was run, or found to have been run before.

    Attributes:
        id: in ML Metadata.
        node: the component's id in the graph.
        run: the run's id.
        cached: an earlier execution had the same result.
        finished_at: ISO 8601, in UTC.
        properties: execution properties.
        inputs: key -> artifacts.
        outputs: likewise.
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
        workdir: of `catbreeds run`.

    Raises:
        HistoryError: there was no run in `workdir`, or what it wrote cannot be read.
    """

    def __init__(self, workdir: str | Path):
        path = Path(workdir) / "metadata.sqlite"
        try:
            path.open("rb").close()  # ML Metadata does not say why it cannot open a file
        except (FileNotFoundError, NotADirectoryError):
            raise HistoryError(f"{path}: not there; `catbreeds run` writes it") from None
        except OSError as error:
            raise HistoryError(f"{path}: cannot be read: {error.strerror}") from None
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
        self._path = path
        with self._errors_named():
            self._store = metadata_store.MetadataStore(config)

    def last_run(self, node: str) -> str:
        """The id of the newest run in which `node` finished."""
        runs = {execution.id: execution.run for execution in self._executions.values() if execution.node == node}
        if not runs:
            raise HistoryError(f"{self._path}: no run has got as far as {node}")
        return runs[max(runs)]

    def execution(self, run: str, node: str) -> Execution:
        """The execution of `node` in a run.

        Raises:
            HistoryError: there is none.
        """
        for execution in self._executions.values():
            if (execution.run, execution.node) == (run, node):
                return execution
        runs = sorted({e.run for e in self._executions.values() if e.node == node})
        raise HistoryError(f"{self._path}: no {node} in run {run!r}; there is one in: {', '.join(runs) or 'none'}")

    def producer(self, artifact: Artifact) -> Execution:
        """The execution that wrote an artifact, not one that found it in the cache."""
        return self._producers[artifact.id]

    @cached_property
    def _executions(self) -> dict[int, Execution]:
        with self._errors_named():
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
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (errors.StatusError, RuntimeError) as error:
            first_line = str(error).partition("\n")[0]
            raise HistoryError(f"{self._path}: damaged, or another process writes to it: {first_line}") from None

    def _read(self) -> Iterator[Execution]:
        executions = [e for e in self._store.get_executions() if e.last_known_state in _FINISHED]
        artifacts = {
            a.id: Artifact(a.id, a.type, a.uri, _values(a.custom_properties)) for a in self._store.get_artifacts()
        }
        events = defaultdict(list)
        for event in self._store.get_events_by_execution_ids([e.id for e in executions]) if executions else []:
            events[event.execution_id].append(event)
        for execution in executions:
            names = {c.type: c.name for c in self._store.get_contexts_by_execution(execution.id)}
            sides = {_Event.INPUT: defaultdict(list), _Event.OUTPUT: defaultdict(list)}
            for event in events[execution.id]:
                if event.type in sides:
                    sides[event.type][event.path.steps[0].key].append(artifacts[event.artifact_id])
            yield Execution(
                id=execution.id,
                node=names["node"].partition(".")[2],
                run=names["pipeline_run"],
                cached=execution.last_known_state == metadata_store_pb2.Execution.CACHED,
                finished_at=_time(execution.last_update_time_since_epoch),
                properties=_values(execution.custom_properties),
                inputs=dict(sides[_Event.INPUT]),
                outputs=dict(sides[_Event.OUTPUT]),
            )


def _values(properties) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("value")) for name, value in sorted(properties.items())}


def _time(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="seconds")
