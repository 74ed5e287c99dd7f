"""Components that do what a test of the runner tells them: wait for a file, fail, die."""

import os
import signal
import subprocess
import time
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ExampleStatistics

from components import progress
from components.errors import DataError

DEADLINE = 120  # seconds; generous, for it decides no test


class Unpicklable(Exception):
    """An error that no other process can read."""

    def __init__(self, reason, also):
        super().__init__(reason)


def wait_for(path: Path) -> None:
    end = time.monotonic() + DEADLINE
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)


@component
def Source(out: OutputArtifact[ExampleStatistics], folder: Parameter[str]):
    """Writes where it ran."""
    Path(folder, "Source.pid").write_text(str(os.getpid()))
    progress.report("steps", 1, 2)


@component
def Branch(
    source: InputArtifact[ExampleStatistics],
    out: OutputArtifact[ExampleStatistics],
    folder: Parameter[str],
    name: Parameter[str],
    then: Parameter[str],
):
    """Says that it is there, waits until `<name>.go` is there, then does what `then` says."""
    Path(folder, f"{name}.there").write_text(str(os.getpid()))
    wait_for(Path(folder, f"{name}.go"))
    if then == "refuse":
        raise DataError(f"{name} refuses the data")
    if then == "fail":
        raise Unpicklable(f"{name} fails", __file__)
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"{name} prints")
    subprocess.run(["true"], check=True)
    out.set_string_custom_property("name", name)


@component
def Join(
    left: InputArtifact[ExampleStatistics],
    right: InputArtifact[ExampleStatistics],
    out: OutputArtifact[ExampleStatistics],
):
    """Needs both branches."""
    out.set_string_custom_property(
        "joined", left.get_string_custom_property("name") + right.get_string_custom_property("name")
    )
