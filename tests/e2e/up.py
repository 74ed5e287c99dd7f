"""A running `catbreeds up`."""

import os
from pathlib import Path

from tests import fork_server
from tests.running import CATBREEDS
from tests.serving.model_server.servers import eventually, free_port

FLAGS = ("--page-port", "--gateway-port", "--grpc-port", "--rest-port")


class Up:
    """A running `catbreeds up`.

    Args:
        workdir: Workdir with a pushed model.
        **variables: Environment variables.
    """

    def __init__(self, workdir: Path, **variables: str):
        self.workdir, self.log = workdir, workdir / "up.log"
        self.ports = {flag: free_port() for flag in FLAGS}
        with self.log.open("wb") as log:
            command = [CATBREEDS, "up", "--workdir", workdir, *self.arguments()]
            self.process = fork_server.Popen(command, stdout=log, stderr=log, env={**os.environ, **variables})
        eventually(self.ready)
        self.page = f"http://127.0.0.1:{self.ports['--page-port']}"
        self.gateway = f"http://127.0.0.1:{self.ports['--gateway-port']}"
        self.grpc = f"127.0.0.1:{self.ports['--grpc-port']}"
        self.rest = f"http://127.0.0.1:{self.ports['--rest-port']}"

    def arguments(self) -> list[object]:
        return [part for pair in self.ports.items() for part in pair]

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Open http" in self.log.read_text()
