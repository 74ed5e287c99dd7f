"""Runs the pipeline on this machine: TFX's LocalDagRunner, node by node, so that progress can be shown.

Finished components are found again in ML Metadata, so a run that was killed goes on where it stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import launcher, runtime_parameter_utils


class ComponentError(Exception):
    """A component failed; `__cause__` is why.

    Attributes:
        node_id: of the component.
    """

    def __init__(self, node_id: str):
        super().__init__(node_id)
        self.node_id = node_id


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


def run(
    pipeline: Pipeline,
    run_id: str,
    on_start: Callable[[str, int, int], None] = lambda *_: None,
    on_finish: Callable[[NodeRun], None] = lambda _: None,
) -> dict[str, NodeRun]:
    """Runs the components one after another, in topological order.

    Args:
        pipeline: see `pipeline.graph.create_pipeline`.
        run_id: the name of this run in ML Metadata.
        on_start: called with node id, its number from 1, and the number of nodes.
        on_finish: called with what became of the node.

    Returns:
        node id -> what became of it.

    Raises:
        ComponentError: a component failed; the ones before it are kept.
    """
    ir = compiler.Compiler().compile(pipeline)
    runtime_parameter_utils.substitute_runtime_parameter(ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(ir)
    connection = pipeline.metadata_connection_config
    results = {}
    for number, node in enumerate(ir.nodes, start=1):
        node_id = node.pipeline_node.node_info.id
        on_start(node_id, number, len(ir.nodes))
        started = time.monotonic()
        try:
            info = launcher.Launcher(
                pipeline_node=node.pipeline_node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=ir.pipeline_info,
                pipeline_runtime_spec=ir.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
            ).launch()
        except Exception as error:
            raise ComponentError(node_id) from error
        cached, outputs = _outcome(connection, info.execution_id)
        results[node_id] = NodeRun(node_id, cached, time.monotonic() - started, outputs)
        on_finish(results[node_id])
    return results


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
