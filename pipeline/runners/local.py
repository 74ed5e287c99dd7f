"""Runs the pipeline on this machine: TFX's launcher for each component, as many at a time as there are workers.

Drivers and publishers run in this process, one at a time, so that one process writes ML Metadata; executors run in
processes of their own (`pipeline.runners.executor_processes`). Completed components are found again in ML Metadata, so
a run that was killed continues after the last component that completed.
"""

import functools
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import psutil
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.base_executor_operator import BaseExecutorOperator
from tfx.proto.orchestration.executable_spec_pb2 import BeamExecutableSpec, PythonClassExecutableSpec
from tfx.proto.orchestration.execution_result_pb2 import ExecutorOutput
from tfx.proto.orchestration.pipeline_pb2 import PipelineNode

from pipeline.runners.executor_processes import ExecutorProcesses

# What executors import only when they start.
_EXECUTOR_MODULES = ("pipeline.modules.preprocessing", "pipeline.modules.training", "pipeline.modules.tuning")
_WORKER_BYTES = 3e9  # EfficientNetB7 at 224 px takes 1.6 GB in batches of 16, and a component may start a process


class ComponentError(Exception):
    """Components failed.

    Attributes:
        causes: node id -> what its executor raised, the first failure first.
        results: node id -> what became of each component that was completed.
    """

    def __init__(self, causes: dict[str, Exception], results: "dict[str, NodeRun]"):
        super().__init__(", ".join(causes))
        self.causes, self.results = causes, results


@dataclass(frozen=True)
class NodeRun:
    """What became of one component.

    Attributes:
        node_id: of the component.
        cached: its result was there already.
        seconds: wall time.
        outputs: output key -> URI of the artifact.
    """

    node_id: str
    cached: bool
    seconds: float
    outputs: dict[str, str]


def metadata_config(workdir: str | Path) -> metadata_store_pb2.ConnectionConfig:
    """ML Metadata of a workdir: a SQLite file."""
    path = Path(workdir).resolve() / "metadata.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return metadata.sqlite_metadata_connection_config(str(path))


class Listener(Protocol):
    """Who follows a run."""

    def on_start(self, node_id: str, total: int) -> None:
        """A component starts, one of `total`."""

    def on_progress(self, node_id: str, what: str, done: int, total: int | None) -> None:
        """See `components.progress`; may be called by any thread."""

    def on_finish(self, run: NodeRun) -> None:
        """A component is done."""

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """A component failed; those in `running` are completed before the run ends."""


def default_workers() -> int:
    """As many as cores, but no more than there is memory for."""
    fitting = int(psutil.virtual_memory().available / _WORKER_BYTES)
    return max(1, min(len(os.sched_getaffinity(0)), fitting))


def run(
    pipeline: Pipeline, run_id: str, listener: Listener, logs: Path, workers: int | None = None
) -> dict[str, NodeRun]:
    """Runs each component as soon as its inputs are there and a worker is free, the most urgent first.

    Args:
        pipeline: see `pipeline.graph.create_pipeline`.
        run_id: the name of this run in ML Metadata.
        listener: is told what happens.
        logs: folder for the output of each component, `<node id>.log`.
        workers: components that run at a time; None: see `default_workers`.

    Returns:
        node id -> what became of it.

    Raises:
        ComponentError: components failed. No other was started since; those that ran were completed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers = workers or default_workers()
    results: dict[str, NodeRun] = {}
    causes: dict[str, Exception] = {}
    with ThreadPoolExecutor(workers) as threads, ExecutorProcesses(_EXECUTOR_MODULES) as processes:
        graph = _Graph(pipeline, run_id, listener, logs, processes)
        waiting, running = graph.nodes_by_urgency(), {}
        total = len(waiting)
        while running or (waiting and not causes):
            ready = [node for node in waiting if results.keys() >= set(node.upstream_nodes)]
            for node in ready[: 0 if causes else workers - len(running)]:
                waiting.remove(node)
                listener.on_start(node.node_info.id, total)
                running[threads.submit(graph.launch, node)] = node.node_info.id
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                node_id = running.pop(done)
                if error := done.exception():
                    causes[node_id] = error
                    listener.on_failure(node_id, error, sorted(running.values()))
                else:
                    results[node_id] = done.result()
                    listener.on_finish(done.result())
    if causes:
        raise ComponentError(causes, results)
    return results


class _Graph:
    """The compiled pipeline, and what launching one of its nodes takes."""

    def __init__(self, pipeline: Pipeline, run_id: str, listener: Listener, logs: Path, processes: ExecutorProcesses):
        self._ir = compiler.Compiler().compile(pipeline)
        runtime_parameter_utils.substitute_runtime_parameter(
            self._ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        self._deployment = runner_utils.extract_local_deployment_config(self._ir)
        self._connection = pipeline.metadata_connection_config
        self._listener, self._logs, self._processes = listener, logs, processes
        self._metadata_lock = threading.Lock()

    def nodes_by_urgency(self) -> list[PipelineNode]:
        """Those with the longest chain of components after them first."""
        nodes = [node.pipeline_node for node in self._ir.nodes]  # in topological order
        heights: dict[str, int] = {}
        for node in reversed(nodes):
            heights[node.node_info.id] = 1 + max((heights[other] for other in node.downstream_nodes), default=0)
        return sorted(nodes, key=lambda node: -heights[node.node_info.id])

    def launch(self, node: PipelineNode) -> NodeRun:
        """Runs a node, or finds its result in the cache."""
        node_id = node.node_info.id
        started = time.monotonic()
        operator = functools.partial(_Operator, graph=self, node_id=node_id)
        with self._metadata_lock:
            info = launcher.Launcher(
                pipeline_node=node,
                mlmd_connection=metadata.Metadata(self._connection),
                pipeline_info=self._ir.pipeline_info,
                pipeline_runtime_spec=self._ir.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(self._deployment, node_id),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(self._deployment, node_id),
                custom_executor_operators=dict.fromkeys(_Operator.SUPPORTED_EXECUTOR_SPEC_TYPE, operator),
            ).launch()
            cached, outputs = _outcome(self._connection, info.execution_id)
        return NodeRun(node_id, cached, time.monotonic() - started, outputs)

    def execute(self, node_id: str, spec, execution) -> ExecutorOutput:
        """Runs an executor in a process of its own, while other nodes may use ML Metadata."""
        self._metadata_lock.release()
        try:
            on_progress = functools.partial(self._listener.on_progress, node_id)
            return self._processes.run(spec, execution, self._logs / f"{node_id}.log", on_progress)
        finally:
            self._metadata_lock.acquire()


class _Operator(BaseExecutorOperator):
    """What TFX's launcher calls in place of its own operators, which run executors in this process."""

    SUPPORTED_EXECUTOR_SPEC_TYPE: ClassVar = [PythonClassExecutableSpec, BeamExecutableSpec]
    SUPPORTED_PLATFORM_CONFIG_TYPE: ClassVar = []

    def __init__(self, executor_spec, platform_config=None, *, graph: _Graph, node_id: str):
        super().__init__(executor_spec, platform_config)
        self._graph, self._node_id = graph, node_id

    def run_executor(self, execution_info):
        """See TFX's BaseExecutorOperator."""
        return self._graph.execute(self._node_id, self._executor_spec, execution_info)


def _outcome(connection: metadata_store_pb2.ConnectionConfig, execution_id: int) -> tuple[bool, dict[str, str]]:
    with metadata.Metadata(connection) as handle:
        (execution,) = handle.store.get_executions_by_id([execution_id])
        events = [
            event
            for event in handle.store.get_events_by_execution_ids([execution_id])
            if event.type == metadata_store_pb2.Event.OUTPUT
        ]
        uris = {a.id: a.uri for a in handle.store.get_artifacts_by_id([event.artifact_id for event in events])}
    cached = execution.last_known_state == metadata_store_pb2.Execution.CACHED
    return cached, {event.path.steps[0].key: uris[event.artifact_id] for event in events}
