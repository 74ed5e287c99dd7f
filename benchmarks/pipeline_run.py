"""Run the pipeline, or its first part, with one component at a time, for benchmarks of components."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.graph import create_pipeline
from pipeline.run_context import local_run_context
from pipeline.runners import local as local_runner
from pipeline.runners.local import NodeRun
from pipeline.settings import Settings


class _LastComponentFinished(Exception):
    """Exception that ends the run, because later components are not measured."""


class _RecordingListener:
    """Listener that records the components of a run, and ends it after one of them.

    Attributes:
        runs: Finished components, by node ID.
        on_progress: See `local_runner.Listener`.
    """

    def __init__(self, last: str | None, record: Callable[[NodeRun], None], on_progress: Callable[..., None]):
        self._last, self._record, self.on_progress = last, record, on_progress
        self.runs: dict[str, NodeRun] = {}

    def on_start(self, node_id: str, total: int) -> None:
        """See `local_runner.Listener`."""

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """See `local_runner.Listener`."""

    def on_finish(self, run: NodeRun) -> None:
        """See `local_runner.Listener`."""
        self.runs[run.node_id] = run
        self._record(run)
        log(f"{run.node_id}: {run.seconds:.1f} s{' (cached)' * run.cached}")
        if run.node_id == self._last:
            raise _LastComponentFinished


def run_pipeline(
    settings: Settings,
    last: str | None = None,
    record: Callable[[NodeRun], None] = lambda run: None,
    on_progress: Callable[[str, str, int, int | None], None] = lambda *report: None,
) -> dict[str, NodeRun]:
    """Run the pipeline one component at a time and return the components by node ID.

    Args:
        settings: Settings of the run.
        last: ID of the node after which the run ends; None for a complete run.
        record: Function that is called with each component when it finishes.
        on_progress: Function that receives the progress reports of all components; see `local_runner.Listener`.
    """
    config = local_runner.metadata_config(settings.workdir)
    listener = _RecordingListener(last, record, on_progress)
    # TFX would not run the completed components of a run with the same ID again, even if their code changed.
    run_id = f"benchmark-{time.time_ns()}"
    graph = create_pipeline(settings, local_run_context(settings, run_id), config)
    with contextlib.suppress(_LastComponentFinished):
        local_runner.run(graph, run_id, listener, Path(settings.workdir) / "logs", workers=1)
    return listener.runs


def log(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr, flush=True)
