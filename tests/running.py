"""The command line as tests use it."""

import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

from tests import fork_server

CATBREEDS = Path(sys.executable).parent / "catbreeds"

# One backbone, few trials: a run in well under a minute. So few test photos can hardly show that a model is better than
# always answering the largest breed.
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
    """A `catbreeds run` that has ended.

    Attributes:
        workdir: where it worked.
        photos: what it learned from.
        process: its exit code and output.
        settings: the `--set` arguments it had.
    """

    workdir: Path
    photos: Path
    process: subprocess.CompletedProcess
    settings: tuple[str, ...] = ()

    @property
    def ran(self) -> set[str]:
        return self._nodes("run")

    @property
    def cached(self) -> set[str]:
        return self._nodes("cached")

    def _nodes(self, how: str) -> set[str]:
        rows = [line.split("]", 1)[1].split() for line in self.process.stdout.splitlines() if line.startswith("[")]
        return {row[0] for row in rows if row[1] == how}

    def artifact(self, node_id: str, key: str) -> Path:
        """Directory of the newest artifact that a component wrote."""
        folder = self.workdir / "artifacts" / node_id / key
        return max(folder.iterdir(), key=lambda path: int(path.name))


def catbreeds(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs the console script."""
    environment = {**os.environ, **options.pop("env", {})}
    return fork_server.run([str(CATBREEDS), *map(str, arguments)], env=environment, **options)


def on_terminal(columns: int, *arguments: object, **variables: str) -> tuple[int, str]:
    """Runs the console script in a terminal of so many columns; its exit code, and all that the terminal got."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    foreign = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    process = fork_server.Popen(
        [str(CATBREEDS), *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color", **variables},
    )
    os.close(theirs)
    received = b""
    with open(ours, "rb", buffering=0) as stream:
        try:
            while block := stream.read(2**16):
                received += block
        except OSError:  # how Linux says that the other end is closed
            pass
    return process.wait(), received.decode().replace("\r\n", "\n")


def run_pipeline(photos: Path, workdir: Path, *settings: str, **options) -> Run:
    """`catbreeds run --profile demo` with settings."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    process = catbreeds("run", "--profile", "demo", "--data", photos, "--workdir", workdir, *overrides, **options)
    return Run(workdir, photos, process, settings)
