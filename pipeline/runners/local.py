"""Local runner: runs the components of a pipeline on this machine with TFX's launcher, several in parallel.

Drivers and publishers run in this process, one at a time, so that only one process writes ML Metadata. Executors run in
separate processes (`pipeline.runners.executor_processes`). ML Metadata records completed components, so the next run
after a killed one reuses them from the cache.
"""

import functools
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

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

from components.memory import available_memory
from pipeline.runners.executor_processes import ExecutorProcesses, Usage

# Modules that executors import when they start; importing them in advance makes every executor start faster.
_EXECUTOR_MODULES = ("pipeline.modules.preprocessing", "pipeline.modules.training", "pipeline.modules.tuning")
# Memory per worker. EfficientNetB7 at 224 px takes 2.4 GB with batches of 32, and a component may start a process.
_WORKER_BYTES = 3e9


class ComponentError(Exception):
    """One or more components failed.

    Attributes:
        causes: Node ID -> exception that its executor raised, in order of failure.
        results: Node ID -> result of each component that completed.
    """

    def __init__(self, causes: dict[str, Exception], results: "dict[str, NodeRun]"):
        super().__init__(", ".join(causes))
        self.causes, self.results = causes, results


@dataclass(frozen=True)
class NodeRun:
    """Result of a completed component.

    Attributes:
        node_id: ID of the node.
        cached: Whether the result comes from the cache.
        seconds: Wall time in seconds.
        outputs: Output key -> URI of the artifact.
        usage: Resources that the executor used; None if the result comes from the cache.
    """

    node_id: str
    cached: bool
    seconds: float
    outputs: dict[str, str]
    usage: Usage | None


def metadata_config(workdir: str | Path) -> metadata_store_pb2.ConnectionConfig:
    """Connection to the ML Metadata store of a workdir, a SQLite file; creates the folder of the file."""
    path = Path(workdir).resolve() / "metadata.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return metadata.sqlite_metadata_connection_config(str(path))


class Listener(Protocol):
    """Listener for the events of a run."""

    def on_start(self, node_id: str, total: int) -> None:
        """Handle the start of a component; `total` is the number of components in the pipeline."""

    def on_progress(self, node_id: str, unit: str, done: int, total: int | None) -> None:
        """Handle a progress report, see `components.progress`. It may be called from any thread."""

    def on_finish(self, run: NodeRun) -> None:
        """Handle the completion of a component."""

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """Handle the failure of a component. The components in `running` still complete before the run ends."""


def default_workers() -> int:
    """Number of CPU cores, or fewer if memory does not suffice for that many workers."""
    cores, available = len(os.sched_getaffinity(0)), available_memory()
    return cores if available is None else max(1, min(cores, int(available / _WORKER_BYTES)))


def run(
    pipeline: Pipeline, run_id: str, listener: Listener, logs: Path, workers: int | None = None
) -> dict[str, NodeRun]:
    """Run a pipeline: start each component when its inputs exist and a worker is free, the most urgent one first.

    Args:
        pipeline: Pipeline from `pipeline.graph.create_pipeline`.
        run_id: ID of the run in ML Metadata.
        listener: Listener for the events of the run.
        logs: Folder for the log of each component, `<node ID>.log`.
        workers: Maximum number of components that run in parallel; None for `default_workers()`.

    Returns:
        Node ID -> result of the component.

    Raises:
        ComponentError: If components failed. After the first failure no component is started, but those already
            running complete.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers = workers or default_workers()
    results: dict[str, NodeRun] = {}
    causes: dict[str, Exception] = {}
    with ThreadPoolExecutor(workers) as threads, ExecutorProcesses(_EXECUTOR_MODULES) as processes:
        graph = _Graph(pipeline, run_id, listener, logs, processes)
        pending, running = graph.nodes_by_urgency(), {}
        total = len(pending)
        while running or (pending and not causes):
            ready = [node for node in pending if results.keys() >= set(node.upstream_nodes)]
            for node in ready[: 0 if causes else workers - len(running)]:
                pending.remove(node)
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
    """The compiled pipeline, with everything needed to launch its nodes."""

    def __init__(self, pipeline: Pipeline, run_id: str, listener: Listener, logs: Path, processes: ExecutorProcesses):
        self._ir = compiler.Compiler().compile(pipeline)
        runtime_parameter_utils.substitute_runtime_parameter(
            self._ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        self._deployment = runner_utils.extract_local_deployment_config(self._ir)
        self._connection = pipeline.metadata_connection_config
        self._listener, self._logs, self._processes = listener, logs, processes
        self._metadata_lock = threading.Lock()
        self._usages: dict[str, Usage] = {}

    def nodes_by_urgency(self) -> list[PipelineNode]:
        """All nodes, those with the longest chain of downstream nodes first."""
        nodes = [node.pipeline_node for node in self._ir.nodes]  # in topological order
        chain_lengths: dict[str, int] = {}
        for node in reversed(nodes):
            downstream = (chain_lengths[node_id] for node_id in node.downstream_nodes)
            chain_lengths[node.node_info.id] = 1 + max(downstream, default=0)
        return sorted(nodes, key=lambda node: -chain_lengths[node.node_info.id])

    def launch(self, node: PipelineNode) -> NodeRun:
        """Run a node, or take its result from the cache."""
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
            cached, outputs = _read_result(self._connection, info.execution_id)
        return NodeRun(node_id, cached, time.monotonic() - started, outputs, self._usages.get(node_id))

    def execute(self, node_id: str, spec, execution) -> ExecutorOutput:
        """Run an executor in a separate process. Meanwhile, other nodes may use ML Metadata."""
        self._metadata_lock.release()
        try:
            on_progress = functools.partial(self._listener.on_progress, node_id)
            run = self._processes.run(spec, execution, self._logs / f"{node_id}.log", on_progress)
            self._usages[node_id] = run.usage
            return run.output
        finally:
            self._metadata_lock.acquire()


class _Operator(BaseExecutorOperator):
    """Executor operator that replaces those of TFX, which run executors in this process."""

    SUPPORTED_EXECUTOR_SPEC_TYPE: ClassVar = [PythonClassExecutableSpec, BeamExecutableSpec]
    SUPPORTED_PLATFORM_CONFIG_TYPE: ClassVar = []

    def __init__(self, executor_spec, platform_config=None, *, graph: _Graph, node_id: str):
        super().__init__(executor_spec, platform_config)
        self._graph, self._node_id = graph, node_id

    def run_executor(self, execution_info):
        """See TFX's BaseExecutorOperator."""
        return self._graph.execute(self._node_id, self._executor_spec, execution_info)


def _read_result(connection: metadata_store_pb2.ConnectionConfig, execution_id: int) -> tuple[bool, dict[str, str]]:
    """Whether an execution was cached, and its outputs as output key -> URI."""
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
