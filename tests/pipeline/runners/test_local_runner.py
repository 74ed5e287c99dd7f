"""Local runner: parallel components, failures, killed processes and progress."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline

from components.errors import DataError
from pipeline.runners import local as local_runner
from pipeline.runners.executor_processes import ExecutorDiedError
from tests import fork_server
from tests.pipeline.runners.toy_components import ALLOCATED, DEADLINE, Branch, Join, Source, wait_for


class RecordingListener:
    """Listener that records the events of a run."""

    def __init__(self):
        self.started, self.finished, self.progress, self.failed = [], [], [], []

    def on_start(self, node_id, total):
        self.started.append((node_id, total))

    def on_progress(self, node_id, what, done, total):
        self.progress.append((node_id, what, done, total))

    def on_finish(self, run):
        self.finished.append(run.node_id)

    def on_failure(self, node_id, cause, running):
        self.failed.append((node_id, running))


def toy_pipeline(folder, left="complete", right="complete"):
    source = Source(folder=str(folder))
    branches = [
        Branch(source=source.outputs["out"], folder=str(folder), name=name, behavior=behavior).with_id(name)
        for name, behavior in (("left", left), ("right", right))
    ]
    join = Join(left=branches[0].outputs["out"], right=branches[1].outputs["out"])
    return Pipeline(
        pipeline_name="toy",
        pipeline_root=str(folder / "artifacts"),
        components=[source, *branches, join],
        enable_cache=True,
        metadata_connection_config=local_runner.metadata_config(folder),
    )


def run(folder, listener=None, workers=2, run_id="run", **behaviors):
    pipeline = toy_pipeline(folder, **behaviors)
    return local_runner.run(pipeline, run_id, listener or RecordingListener(), folder / "logs", workers)


def release(folder, *names, after=()):
    """Release the branches `names` from another thread as soon as the branches in `after` have started."""

    def wait_and_release():
        for name in after:
            wait_for(folder / f"{name}.started")
        for name in names:
            (folder / f"{name}.continue").touch()

    thread = threading.Thread(target=wait_and_release)
    thread.start()
    return thread


def test_branches_run_in_parallel_in_separate_processes(tmp_path):
    thread = release(tmp_path, "left", "right", after=("left", "right"))
    listener = RecordingListener()
    runs = run(tmp_path, listener)
    thread.join()
    assert list(runs) == listener.finished
    assert listener.finished[0] == "Source"
    assert listener.finished[-1] == "Join"
    assert listener.started[0] == ("Source", 4)
    assert listener.progress == [("Source", "steps", 1, 2)]
    pids = {(tmp_path / name).read_text() for name in ("Source.pid", "left.started", "right.started")}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids
    assert "left prints" in (tmp_path / "logs" / "left.log").read_text()


def test_usage_includes_the_processes_that_a_component_started(tmp_path):
    release(tmp_path, "left", "right").join()
    behaviors = {"left": "allocate", "right": "start a process that allocates"}
    first = run(tmp_path, **behaviors)
    assert all(node.usage.cpu_seconds > 0 for node in first.values())
    imported = first["Source"].usage.peak_memory
    for branch in behaviors:
        assert 0.8 * ALLOCATED < first[branch].usage.peak_memory - imported < 1.5 * ALLOCATED
    second = run(tmp_path, run_id="second", **behaviors)
    assert {node.usage for node in second.values()} == {None}


@pytest.mark.parametrize("behavior", ["complete", "fail"])
def test_temporary_files_of_components_are_deleted(tmp_path, monkeypatch, behavior):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    release(tmp_path, "left", "right").join()
    with contextlib.suppress(local_runner.ComponentError):
        run(tmp_path, left=behavior)
    assert (tmp_path / "Source.pid").exists()
    assert list(temporary.iterdir()) == []


def test_one_worker_runs_one_component_at_a_time(tmp_path):
    running_counts = []

    class CountingListener(RecordingListener):
        def on_start(self, node_id, total):
            super().on_start(node_id, total)
            running_counts.append(len(self.started) - len(self.finished))

    release(tmp_path, "left", "right").join()
    run(tmp_path, CountingListener(), workers=1)
    assert running_counts == [1, 1, 1, 1]


def test_a_second_run_reads_all_results_from_the_cache(tmp_path):
    release(tmp_path, "left", "right").join()
    first = run(tmp_path)
    second = run(tmp_path, run_id="second")
    assert not any(node.cached for node in first.values())
    assert all(node.cached for node in second.values())
    assert {node_id: node.outputs for node_id, node in first.items()} == {n: r.outputs for n, r in second.items()}


@pytest.mark.parametrize(
    ("behavior", "error_type", "message"),
    [
        ("reject", DataError, "left rejects the data"),
        ("fail", RuntimeError, "Unpicklable: left fails"),
        ("die", ExecutorDiedError, "workers=1"),
    ],
)
def test_after_a_failure_running_components_complete_and_no_further_component_starts(
    tmp_path, behavior, error_type, message
):
    release(tmp_path, "left", after=("right",))
    listener = RecordingListener()

    def release_right_after_the_failure():
        end = time.monotonic() + DEADLINE
        while "left" not in failed_nodes(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        (tmp_path / "right.continue").touch()

    thread = threading.Thread(target=release_right_after_the_failure)
    thread.start()
    with pytest.raises(local_runner.ComponentError) as caught:
        run(tmp_path, listener, left=behavior)
    thread.join()
    assert list(caught.value.causes) == ["left"]
    assert type(caught.value.causes["left"]) is error_type
    assert message in str(caught.value.causes["left"])
    assert listener.failed == [("left", ["right"])]
    assert listener.finished == ["Source", "right"]
    assert caught.value.results.keys() == {"Source", "right"}
    again = run(tmp_path, run_id="again")
    assert {node_id for node_id, node in again.items() if node.cached} == {"Source", "right"}


def failed_nodes(folder):
    """Node ids of the failed executions."""
    with metadata.Metadata(local_runner.metadata_config(folder)) as handle:
        failed = [
            execution
            for execution in handle.store.get_executions()
            if execution.last_known_state == metadata_store_pb2.Execution.FAILED
        ]
        return {c.name.removeprefix("toy.") for e in failed for c in handle.store.get_contexts_by_execution(e.id)}


def test_the_traceback_of_a_failure_is_in_the_log_of_the_component(tmp_path):
    release(tmp_path, "left", "right")
    with pytest.raises(local_runner.ComponentError):
        run(tmp_path, left="fail")
    assert "in Branch\n    raise Unpicklable" in (tmp_path / "logs" / "left.log").read_text()


def test_components_of_a_killed_run_end_and_the_next_run_continues(tmp_path):
    process = fork_server.Popen([sys.executable, "-m", "tests.pipeline.runners.toy_run", tmp_path])
    for name in ("left", "right"):
        wait_for(tmp_path / f"{name}.started")
    pids = [int((tmp_path / f"{name}.started").read_text()) for name in ("left", "right")]
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + DEADLINE
    while any(map(_alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
    release(tmp_path, "left", "right").join()
    again = run(tmp_path, run_id="again")
    assert {node_id for node_id, node in again.items() if node.cached} == {"Source"}


def _alive(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_an_interrupted_run_leaves_no_component_running(tmp_path):
    class InterruptingListener(RecordingListener):
        def on_start(self, node_id, total):
            if node_id == "right":
                wait_for(tmp_path / "left.started")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingListener())
    pid = int((tmp_path / "left.started").read_text())
    end = time.monotonic() + DEADLINE
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_number_of_workers_is_limited_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for available, workers in ((100e9, 8), (7e9, 2), (1e9, 1), (None, 8)):
        monkeypatch.setattr(local_runner, "available_memory", lambda available=available: available)
        assert local_runner.default_workers() == workers
