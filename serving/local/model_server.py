"""The embedded model server as a child process, for notebooks and other clients on this machine."""

import atexit
import tempfile
from pathlib import Path

from serving.addresses import free_ports
from serving.labels import STABLE
from serving.local import processes, stack
from serving.precision import precision_of
from serving.registry import Registry, RegistryError
from serving.rollout.serving_config import CONFIG_FILE, ServingConfig


class LocalServer:
    """Model server for the stable version of a registry. It runs until `stop` is called or this process ends.

    Args:
        registry: Registry of pushed models.
        name: Name of the model.

    Attributes:
        grpc: Address of the gRPC API, host:port.
        rest: URL of the REST API.

    Raises:
        RegistryError: If no version is stable.
        ProgramError: If the server does not start; the message contains the end of its log.
    """

    def __init__(self, registry: Registry, name: str):
        version = registry.stable()
        if version is None:
            raise RegistryError(f"{registry.base}: no version is stable; `catbreeds run` trains and pushes one")
        grpc_port, rest_port = free_ports(2)
        self.grpc, self.rest = f"localhost:{grpc_port}", f"http://localhost:{rest_port}"
        self._folder = tempfile.TemporaryDirectory(prefix="catbreeds-server-")
        config_file, log = Path(self._folder.name, CONFIG_FILE), Path(self._folder.name, "model_server.log")
        config = ServingConfig((version,), {STABLE: version})
        config_file.write_text(config.files(name, str(registry.base))[CONFIG_FILE], encoding="utf-8")
        precision = precision_of(registry.record(version))
        program = stack.model_server(
            config_file, name, grpc_port, rest_port, log, embedded=True, load_retries=0, precision=precision
        )
        try:
            self._process = processes.start(program, stack.MODEL_SERVER_SECONDS)
        except BaseException:
            self._folder.cleanup()
            raise
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stop the server; has no effect if it has ended."""
        atexit.unregister(self.stop)
        self._process.stop()
        self._folder.cleanup()
