"""Run the servers of `catbreeds serve` and `catbreeds up` for the registry of a workdir."""

import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.addresses import LOOPBACK, listen, local_address
from serving.labels import STABLE
from serving.local import stack
from serving.local.processes import Supervisor
from serving.precision import precision_of
from serving.registry import Registry, RegistryError
from serving.rollout.controller import RolloutController
from serving.rollout.errors import RolloutError
from serving.rollout.limits import RolloutLimits
from serving.rollout.local_fleet import GATEWAY, MODEL_SERVER, LocalFleet


class PortError(ValueError):
    """A server cannot listen on an address; the message names the address and the option that sets it."""


@dataclass(frozen=True)
class Deployment:
    """A registry and the workdir whose servers serve it.

    Attributes:
        registry: Directory of the registry, with the name of the model.
        workdir: Folder of the serving configuration and the logs.
        limits: Limits of the rollout.
    """

    registry: Path
    workdir: str | Path
    limits: RolloutLimits


@dataclass(frozen=True)
class Ports:
    """Ports of the model server, and the IP address that it listens on."""

    grpc: int
    rest: int
    host: str = LOOPBACK

    @property
    def grpc_address(self) -> str:
        """Address, host:port, by which this machine reaches the gRPC API."""
        return local_address(self.host, self.grpc)

    @property
    def description(self) -> str:
        """Addresses of the model server, for display."""
        text = f"gRPC {self.grpc_address}, REST {stack.local_url(self.host, self.rest)}"
        if stack.official_model_server():
            return (
                f"{text} ({stack.TENSORFLOW_MODEL_SERVER} listens on all addresses of this machine; use a firewall "
                "to restrict access)"
            )
        return text


def serve(deployment: Deployment, ports: Ports) -> None:
    """Run a model server until this process is stopped.

    Raises:
        RegistryError: If no version can be served.
        FleetError: If the current serving configuration of the workdir cannot be read.
        ProgramError: If the model server ends.
    """
    with Supervisor() as supervisor:
        fleet, rollout, labels = _write_config(deployment)
        supervisor.start(
            stack.model_server(
                fleet.config_file,
                fleet.model_name,
                ports.grpc,
                ports.rest,
                host=ports.host,
                precision=_precision(deployment, labels),
            )
        )
        _print(f"{_describe(fleet.model_name, labels)}: {ports.description}")
        with fleet.announced(MODEL_SERVER, ports.grpc_address):
            _sync_in_background(rollout)
            supervisor.watch()


def configure(deployment: Deployment, ports: Ports) -> None:
    """Write and maintain the serving configuration for a model server that runs elsewhere on these ports.

    Raises:
        RegistryError: If no version can be served.
        FleetError: If the current serving configuration of the workdir cannot be read.
    """
    with Supervisor() as supervisor:
        fleet, _, labels = _write_config(deployment)
        _print(f"{_describe(fleet.model_name, labels)}: {fleet.config_file}")
        with fleet.announced(MODEL_SERVER, ports.grpc_address):
            supervisor.watch()


def up(
    deployment: Deployment,
    ports: Ports,
    host: str,
    gateway_port: int,
    page_port: int,
    find_samples: Callable[[int], Path | None],
) -> None:
    """Run model server, gateway and page until this process is stopped.

    Args:
        deployment: Registry and workdir to serve.
        ports: Ports of the model server.
        host: IP address that gateway and page listen on.
        gateway_port: Port of the gateway.
        page_port: Port of the page.
        find_samples: Function that returns a folder of sample photos for the stable version, or None.

    Raises:
        RegistryError: If no version can be served.
        FleetError: If the current serving configuration of the workdir cannot be read.
        ProgramError: If one of the programs ends; the others are stopped.
    """
    logs = Path(deployment.workdir) / "logs"
    gateway_url, page_url = stack.local_url(host, gateway_port), stack.local_url(host, page_port)
    with Supervisor() as supervisor:
        fleet, rollout, labels = _write_config(deployment)
        _print(f"{_describe(fleet.model_name, labels)}; logs: {logs}")
        samples = find_samples(labels[STABLE])
        server_log, gateway_log, page_log = logs / "model_server.log", logs / "gateway.log", logs / "page.log"
        config_file, traffic_file, model = fleet.config_file, fleet.traffic_file, fleet.model_name
        precision = _precision(deployment, labels)
        model_server = stack.model_server(config_file, model, ports.grpc, ports.rest, server_log, precision=precision)
        for program, addresses in (
            (model_server, ports.description),
            (stack.gateway(host, gateway_port, ports.grpc, model, traffic_file, gateway_log), f"{gateway_url}/docs"),
            (stack.page(host, page_port, gateway_url, samples, page_log), page_url),
        ):
            _print(f"  {program.name:<12} ready after {supervisor.start(program):>5.1f} s   {addresses}")
        _print(f"Open {page_url} and upload a photo of a cat. Press Ctrl-C to stop all three.")
        gateway_address = gateway_url.removeprefix("http://")
        with fleet.announced(MODEL_SERVER, ports.grpc_address), fleet.announced(GATEWAY, gateway_address):
            _sync_in_background(rollout)
            supervisor.watch()


def require_free_ports(addresses: Mapping[str, tuple[str, int]]) -> None:
    """Check that servers can listen on these addresses.

    Args:
        addresses: IP address and port, by the option that sets the port.

    Raises:
        PortError: If a server cannot listen on an address.
    """
    options: dict[int, str] = {}
    for option, (host, port) in addresses.items():
        if port in options:
            raise PortError(f"{options[port]} and {option} are both {port}; set different ports")
        options[port] = option
        try:
            listen(host, port).close()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise PortError(
                    f"--host {host}: {error.strerror}; set an address of this machine, or 0.0.0.0 for all addresses"
                ) from None
            raise PortError(f"port {port}: {error.strerror}; set another port with {option}") from None


def _write_config(deployment: Deployment) -> tuple[LocalFleet, RolloutController, dict[str, int]]:
    """Write the initial configuration of the model server; return the fleet, its controller and versions by label."""
    registry = Registry(deployment.registry)
    stable = registry.stable()
    if stable is None:
        raise RegistryError(f"{registry.base}: no version is stable; `catbreeds run` trains and pushes one")
    registry.require_servable(stable)
    fleet = LocalFleet(deployment.workdir, deployment.registry)
    rollout = RolloutController(registry, fleet, deployment.limits)
    rollout.sync()
    return fleet, rollout, registry.labels()


def _precision(deployment: Deployment, labels: Mapping[str, int]) -> str:
    """Precision of the stable version."""
    return precision_of(Registry(deployment.registry).record(labels[STABLE]))


def _sync_in_background(rollout: RolloutController) -> None:
    """Apply, in a thread, the promotions that were made while the servers started; loading can take a minute."""

    def sync() -> None:
        try:
            rollout.sync()
        except RolloutError as error:  # for example a canary that does not load; the stable version is served
            _print(str(error))

    threading.Thread(target=sync, daemon=True).start()


def _describe(model: str, labels: Mapping[str, int]) -> str:
    return ", ".join(f"{model} version {version} is {label}" for label, version in sorted(labels.items()))


def _print(text: str) -> None:
    print(text, flush=True)
