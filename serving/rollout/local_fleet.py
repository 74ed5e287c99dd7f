"""The fleet of a laptop: files below the workdir, and the processes that said where they listen."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from serving.rollout.fleet import Conflict, FleetError, Server
from serving.rollout.serving_config import (
    CONFIG_FILE,
    TRAFFIC_FILE,
    ServingConfig,
    ServingConfigError,
    read_serving_config,
)

MODEL_SERVER, GATEWAY = "model-server", "gateway"


class LocalFleet:
    """Servers that run on this machine for one workdir.

    Args:
        workdir: theirs.
        base: the registry's directory; it is named as the model is.
    """

    def __init__(self, workdir: str | Path, base: Path):
        self.model = base.name
        self.base_path = str(base.resolve())
        self.where = f"this machine, {workdir}"
        self._folder = Path(workdir).resolve() / "serve"

    @property
    def config_file(self) -> Path:
        """What a model server reads at its start, once something was written."""
        return self._folder / CONFIG_FILE

    @property
    def traffic_file(self) -> Path:
        """What a gateway reads all the time."""
        return self._folder / TRAFFIC_FILE

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """See `Fleet`."""
        files = self._files()
        if CONFIG_FILE not in files:
            return None, None
        try:
            return read_serving_config(files, self.model), _revision(files)
        except ServingConfigError as error:
            raise FleetError(f"{self._folder}: {error}; remove the file and start the server again") from None

    def write(self, plan: ServingConfig, revision: str | None) -> str:
        """See `Fleet`."""
        try:
            return self._write(plan, revision)
        except OSError as error:
            raise FleetError(
                f"{error.filename or self._folder}: cannot be written: {error.strerror or error}"
            ) from None

    def _write(self, plan: ServingConfig, revision: str | None) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".lock"):
            if self.read()[1] != revision:
                raise Conflict(f"{self._folder}: somebody else has just changed it")
            # The configuration last: its revision covers both, and a reader between sees an unknown one.
            for name, content in sorted(plan.files(self.model, self.base_path).items(), reverse=True):
                temporary = self._folder / f".{name}"
                temporary.write_text(content, encoding="utf-8")
                os.replace(temporary, self._folder / name)
            return _revision(self._files())

    def servers(self) -> list[Server]:
        """See `Fleet`."""
        return self._running(MODEL_SERVER)

    def gateways(self) -> list[Server]:
        """See `Fleet`."""
        return self._running(GATEWAY)

    def reach(self, server: Server) -> str:
        """See `Fleet`."""
        return server.address

    @contextlib.contextmanager
    def announced(self, kind: str, address: str) -> Iterator[None]:
        """Writes down, for as long as the block runs, that a process listens there.

        A process that is killed is known to be gone: its lock went with it.

        Args:
            kind: MODEL_SERVER or GATEWAY.
            address: host:port of gRPC or HTTP.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{kind}-{uuid.uuid4().hex}.json"
        with FileLock(note.with_suffix(".lock")):
            temporary = note.with_suffix(".new")
            temporary.write_text(json.dumps({"address": address}), encoding="utf-8")
            temporary.rename(note)
            try:
                yield
            finally:
                note.unlink(missing_ok=True)
        note.with_suffix(".lock").unlink(missing_ok=True)

    def _running(self, kind: str) -> list[Server]:
        servers = []
        for note in sorted(self._folder.glob(f"{kind}-*.json")):
            lock = FileLock(note.with_suffix(".lock"), timeout=0)
            try:
                with lock:
                    note.unlink(missing_ok=True)  # its process was killed
                note.with_suffix(".lock").unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(FileNotFoundError):
                    address = json.loads(note.read_text(encoding="utf-8"))["address"]
                    servers.append(Server(f"{kind} at {address}", note.stem, True, address))
        return servers

    def _files(self) -> dict[str, str]:
        names = [name for name in (CONFIG_FILE, TRAFFIC_FILE) if (self._folder / name).is_file()]
        return {name: (self._folder / name).read_text(encoding="utf-8") for name in names}


def _revision(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
