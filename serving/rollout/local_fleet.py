"""The fleet on one machine: configuration files in the workdir, and server processes that announce their addresses."""

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
    """Servers on this machine for one workdir.

    Args:
        workdir: Workdir of the servers.
        base: Directory of the registry, which has the name of the model.
    """

    def __init__(self, workdir: str | Path, base: Path):
        self.model_name = base.name
        self.base_path = str(base.resolve())
        self.description = f"this machine, {workdir}"
        self._folder = Path(workdir).resolve() / "serve"

    @property
    def config_file(self) -> Path:
        """Configuration file that a model server reads when it starts; missing until the first write."""
        return self._folder / CONFIG_FILE

    @property
    def traffic_file(self) -> Path:
        """Traffic split file that the gateways poll."""
        return self._folder / TRAFFIC_FILE

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """See `Fleet`."""
        files = self._files()
        if CONFIG_FILE not in files:
            return None, None
        try:
            return read_serving_config(files, self.model_name), _revision(files)
        except ServingConfigError as error:
            raise FleetError(f"{self._folder}: {error}; remove the file and restart the server") from None

    def write(self, config: ServingConfig, revision: str | None) -> str:
        """See `Fleet`."""
        try:
            return self._write(config, revision)
        except OSError as error:
            raise FleetError(
                f"{error.filename or self._folder}: cannot be written: {error.strerror or error}"
            ) from None

    def _write(self, config: ServingConfig, revision: str | None) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".lock"):
            if self.read()[1] != revision:
                raise Conflict(f"{self._folder}: another process has changed the configuration")
            # CONFIG_FILE is written last. The revision covers both files, so a concurrent reader gets
            # an unknown revision.
            for name, content in sorted(config.files(self.model_name, self.base_path).items(), reverse=True):
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

    def reachable_address(self, server: Server) -> str:
        """See `Fleet`."""
        return server.address

    @contextlib.contextmanager
    def announced(self, kind: str, address: str) -> Iterator[None]:
        """Add a process to the fleet while the block runs.

        The process holds a file lock, so the fleet notices if it is killed.

        Args:
            kind: MODEL_SERVER or GATEWAY.
            address: Address, host:port, of gRPC for a model server, of HTTP for a gateway.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = self._folder / f"{kind}-{uuid.uuid4().hex}.json"
        with FileLock(entry.with_suffix(".lock")):
            temporary = entry.with_suffix(".new")
            temporary.write_text(json.dumps({"address": address}), encoding="utf-8")
            temporary.rename(entry)
            try:
                yield
            finally:
                entry.unlink(missing_ok=True)
        entry.with_suffix(".lock").unlink(missing_ok=True)

    def _running(self, kind: str) -> list[Server]:
        servers = []
        for entry in sorted(self._folder.glob(f"{kind}-*.json")):
            lock = FileLock(entry.with_suffix(".lock"), timeout=0)
            try:
                with lock:
                    entry.unlink(missing_ok=True)  # the process was killed
                entry.with_suffix(".lock").unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(FileNotFoundError):
                    address = json.loads(entry.read_text(encoding="utf-8"))["address"]
                    servers.append(Server(f"{kind} at {address}", entry.stem, True, address))
        return servers

    def _files(self) -> dict[str, str]:
        names = [name for name in (CONFIG_FILE, TRAFFIC_FILE) if (self._folder / name).is_file()]
        return {name: (self._folder / name).read_text(encoding="utf-8") for name in names}


def _revision(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
