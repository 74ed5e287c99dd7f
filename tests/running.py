"""Helpers that run the `catbreeds` command."""

import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

from tests import fork_server

CATBREEDS = Path(sys.executable).parent / "catbreeds"

# One backbone and few trials, for a run in well under a minute. The gate's comparison with the majority breed is off,
# because a model can hardly pass it with so few test photos.
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
    """A completed `catbreeds run`.

    Attributes:
        workdir: Workdir of the run.
        photos: Folder of its photos.
        process: Exit code and output.
        settings: Values of its `--set` options.
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

    def _nodes(self, status: str) -> set[str]:
        rows = [line.split("]", 1)[1].split() for line in self.process.stdout.splitlines() if line.startswith("[")]
        return {row[0] for row in rows if row[1] == status}

    def artifact(self, node_id: str, key: str) -> Path:
        """Return the folder of the newest artifact of a component."""
        folder = self.workdir / "artifacts" / node_id / key
        return max(folder.iterdir(), key=lambda path: int(path.name))


def catbreeds(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the console script."""
    environment = {**os.environ, **options.pop("env", {})}
    return fork_server.run([str(CATBREEDS), *map(str, arguments)], env=environment, **options)


def on_terminal(columns: int, *arguments: object, **variables: str) -> tuple[int, str]:
    """Run the console script in a terminal with that many columns; return its exit code and its output."""
    parent_end, child_end = pty.openpty()
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
    with open(parent_end, "rb", buffering=0) as stream:
        try:
            while block := stream.read(2**16):
                received += block
        except OSError:  # Linux raises EIO when the child has closed its end
            pass
    return process.wait(), received.decode().replace("\r\n", "\n")


def run_pipeline(photos: Path, workdir: Path, *settings: str, **options) -> Run:
    """Run `catbreeds run --profile demo` with settings of the form `key=value`."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    process = catbreeds("run", "--profile", "demo", "--data", photos, "--workdir", workdir, *overrides, **options)
    return Run(workdir, photos, process, settings)
