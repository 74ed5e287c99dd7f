"""Components for tests of the runner. A parameter sets their behavior: wait for a file, fail, or be killed."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ExampleStatistics

from components import progress
from components.errors import DataError

ALLOCATED = 300_000_000  # bytes
DEADLINE = 120  # seconds; generous, because no test depends on it


class Unpicklable(Exception):
    """An exception that cannot be unpickled, because its constructor has another required argument."""

    def __init__(self, reason, other):
        super().__init__(reason)


def wait_for(path: Path) -> None:
    end = time.monotonic() + DEADLINE
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)


@component
def Source(out: OutputArtifact[ExampleStatistics], folder: Parameter[str]):
    """Write the PID of this process, and a temporary file in each of the two usual ways."""
    Path(folder, "Source.pid").write_text(str(os.getpid()))
    tempfile.mkstemp()
    subprocess.run(["mktemp"], check=True)
    progress.report("steps", 1, 2)


@component
def Branch(
    source: InputArtifact[ExampleStatistics],
    out: OutputArtifact[ExampleStatistics],
    folder: Parameter[str],
    name: Parameter[str],
    behavior: Parameter[str],
):
    """Create `<name>.started`, wait for the file `<name>.continue`, then act according to `behavior`."""
    Path(folder, f"{name}.started").write_text(str(os.getpid()))
    wait_for(Path(folder, f"{name}.continue"))
    if behavior == "reject":
        raise DataError(f"{name} rejects the data")
    if behavior == "fail":
        raise Unpicklable(f"{name} fails", __file__)
    if behavior == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behavior == "allocate":
        _ = b"1" * int(ALLOCATED)
    if behavior == "start a process that allocates":
        imported = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        subprocess.run([sys.executable, "-c", f"b'1' * {imported + ALLOCATED}"], check=True)
    print(f"{name} prints")
    subprocess.run(["true"], check=True)
    out.set_string_custom_property("name", name)


@component
def Join(
    left: InputArtifact[ExampleStatistics],
    right: InputArtifact[ExampleStatistics],
    out: OutputArtifact[ExampleStatistics],
):
    """Run after both branches."""
    out.set_string_custom_property(
        "joined", left.get_string_custom_property("name") + right.get_string_custom_property("name")
    )
