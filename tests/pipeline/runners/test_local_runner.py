"""The local runner: independent components side by side, failures, killed processes, progress."""

import contextlib
import os
import signal
import sys
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
from tests.pipeline.runners.toy_components import DEADLINE, Branch, Join, Source, wait_for


class Follower:
    """Remembers what it is told."""

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


def toy_pipeline(folder, left="end", right="end"):
    source = Source(folder=str(folder))
    branches = [
        Branch(source=source.outputs["out"], folder=str(folder), name=name, then=then).with_id(name)
        for name, then in (("left", left), ("right", right))
    ]
    join = Join(left=branches[0].outputs["out"], right=branches[1].outputs["out"])
    return Pipeline(
        pipeline_name="toy",
        pipeline_root=str(folder / "artifacts"),
        components=[source, *branches, join],
        enable_cache=True,
        metadata_connection_config=local_runner.metadata_config(folder),
    )


def run(folder, follower=None, workers=2, run_id="run", **then):
    pipeline = toy_pipeline(folder, **then)
    return local_runner.run(pipeline, run_id, follower or Follower(), folder / "logs", workers)


def release(folder, *names, after=()):
    """Lets branches go on, in another thread, as soon as those in `after` are there."""

    def work():
        for name in after:
            wait_for(folder / f"{name}.there")
        for name in names:
            (folder / f"{name}.go").touch()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_branches_run_side_by_side_each_in_a_process_of_its_own(tmp_path):
    thread = release(tmp_path, "left", "right", after=("left", "right"))
    follower = Follower()
    runs = run(tmp_path, follower)
    thread.join()
    assert list(runs) == follower.finished
    assert follower.finished[0] == "Source"
    assert follower.finished[-1] == "Join"
    assert follower.started[0] == ("Source", 4)
    assert follower.progress == [("Source", "steps", 1, 2)]
    pids = {(tmp_path / name).read_text() for name in ("Source.pid", "left.there", "right.there")}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids
    assert "left prints" in (tmp_path / "logs" / "left.log").read_text()


def test_one_worker_runs_one_component_at_a_time(tmp_path):
    seen = []

    class Watcher(Follower):
        def on_start(self, node_id, total):
            super().on_start(node_id, total)
            seen.append(len(self.started) - len(self.finished))

    release(tmp_path, "left", "right").join()
    run(tmp_path, Watcher(), workers=1)
    assert seen == [1, 1, 1, 1]


def test_a_second_run_finds_everything_in_the_cache(tmp_path):
    release(tmp_path, "left", "right").join()
    first = run(tmp_path)
    second = run(tmp_path, run_id="second")
    assert not any(node.cached for node in first.values())
    assert all(node.cached for node in second.values())
    assert {node_id: node.outputs for node_id, node in first.items()} == {n: r.outputs for n, r in second.items()}


@pytest.mark.parametrize(
    ("then", "kind", "words"),
    [
        ("refuse", DataError, "left refuses the data"),
        ("fail", RuntimeError, "Unpicklable: left fails"),
        ("die", ExecutorDiedError, "workers=1"),
    ],
)
def test_after_a_failure_what_is_running_is_completed_and_kept_and_nothing_is_started(tmp_path, then, kind, words):
    release(tmp_path, "left", after=("right",))
    follower = Follower()

    def let_right_go():
        end = time.monotonic() + DEADLINE
        while "left" not in failed_nodes(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        (tmp_path / "right.go").touch()

    thread = threading.Thread(target=let_right_go)
    thread.start()
    with pytest.raises(local_runner.ComponentError) as caught:
        run(tmp_path, follower, left=then)
    thread.join()
    assert list(caught.value.causes) == ["left"]
    assert type(caught.value.causes["left"]) is kind
    assert words in str(caught.value.causes["left"])
    assert follower.failed == [("left", ["right"])]
    assert follower.finished == ["Source", "right"]
    assert caught.value.results.keys() == {"Source", "right"}
    again = run(tmp_path, run_id="again")
    assert {node_id for node_id, node in again.items() if node.cached} == {"Source", "right"}


def failed_nodes(folder):
    """Node ids of the executions that have failed."""
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


def test_components_die_with_the_process_that_was_killed_and_a_rerun_continues(tmp_path):
    process = fork_server.Popen([sys.executable, "-m", "tests.pipeline.runners.toy_run", tmp_path])
    for name in ("left", "right"):
        wait_for(tmp_path / f"{name}.there")
    pids = [int((tmp_path / f"{name}.there").read_text()) for name in ("left", "right")]
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


def test_an_interrupted_run_leaves_no_component_behind(tmp_path):
    class Interrupter(Follower):
        def on_start(self, node_id, total):
            if node_id == "right":
                wait_for(tmp_path / "left.there")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupter())
    pid = int((tmp_path / "left.there").read_text())
    end = time.monotonic() + DEADLINE
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_as_many_workers_as_cores_and_memory_allow(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    memory = type(local_runner.psutil.virtual_memory())
    for available, workers in ((100e9, 8), (7e9, 2), (1e9, 1)):
        values = memory(**{**dict.fromkeys(memory._fields, 0), "available": available})
        monkeypatch.setattr(local_runner.psutil, "virtual_memory", lambda values=values: values)
        assert local_runner.default_workers() == workers
