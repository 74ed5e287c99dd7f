"""Helpers that run the command line for tests."""

import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

from tests import fork_server

CATBREEDS = Path(sys.executable).parent / "catbreeds"

# One backbone and few trials, so that a run takes less than a minute. The rule above_majority is off because the few
# test photos can hardly show that a model is better than always predicting the largest breed.
SMALL = (
    "backbones=[resnet50]",
    "image_size=32",
    "tuner.max_epochs=3",
    "tuner.units=[0]",
    "tuner.dropout=[0.2]",
    "tuner.weight_decay=[0.0]",
    "trainer.epochs=8",
    "gate.above_majority=false",
)


@dataclass(frozen=True)
class Run:
    """A finished `catbreeds run`.

    Attributes:
        workdir: Workdir of the run.
        photos: Folder with the photos.
        process: Exit code and output.
        settings: Arguments of `--set`.
    """

    workdir: Path
    photos: Path
    process: subprocess.CompletedProcess
    settings: tuple[str, ...] = ()

    @property
    def ran(self) -> set[str]:
        return self._components("run")

    @property
    def cached(self) -> set[str]:
        return self._components("cached")

    def _components(self, status: str) -> set[str]:
        rows = [line.split("]", 1)[1].split() for line in self.process.stdout.splitlines() if line.startswith("[")]
        return {row[0] for row in rows if row[1] == status}

    def artifact(self, node_id: str, key: str) -> Path:
        """Directory of the newest artifact of an output of a component."""
        folder = self.workdir / "artifacts" / node_id / key
        return max(folder.iterdir(), key=lambda path: int(path.name))


def catbreeds(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the console script."""
    environment = {**os.environ, **options.pop("env", {})}
    return fork_server.run([str(CATBREEDS), *map(str, arguments)], env=environment, **options)


def on_terminal(columns: int, *arguments: object, **variables: str) -> tuple[int, str]:
    """Run the console script in a terminal with `columns` columns; return the exit code and the output."""
    terminal, child_end = pty.openpty()
    termios.tcsetwinsize(child_end, (40, columns))
    terminal_variables = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")
    environment = {name: value for name, value in os.environ.items() if name not in terminal_variables}
    process = fork_server.Popen(
        [str(CATBREEDS), *map(str, arguments)],
        stdin=child_end,
        stdout=child_end,
        stderr=child_end,
        env={**environment, "TERM": "xterm-256color", **variables},
    )
    os.close(child_end)
    received = b""
    with open(terminal, "rb", buffering=0) as stream:
        try:
            while block := stream.read(2**16):
                received += block
        except OSError:  # Linux raises EIO when the other end is closed
            pass
    return process.wait(), received.decode().replace("\r\n", "\n")


def run_pipeline(photos: Path, workdir: Path, *settings: str, **options) -> Run:
    """Run `catbreeds run --profile demo` with the given settings."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    process = catbreeds("run", "--profile", "demo", "--data", photos, "--workdir", workdir, *overrides, **options)
    return Run(workdir, photos, process, settings)
