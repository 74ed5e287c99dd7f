"""Serves the registry of a workdir on this machine: what `catbreeds serve` and `catbreeds up` do."""

import errno
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import Settings
from serving.addresses import LOOPBACK, listen, local_address
from serving.labels import STABLE
from serving.local import stack
from serving.local.processes import Programs
from serving.registry import Registry, RegistryError
from serving.rollout.controller import RolloutController
from serving.rollout.errors import RolloutError
from serving.rollout.limits import RolloutLimits
from serving.rollout.local_fleet import GATEWAY, MODEL_SERVER, LocalFleet

# Numbers of drawn photos that no run has seen: nobody draws as many to learn from.
_UNSEEN = 1_000_000


class PortError(ValueError):
    """A server cannot listen there; the message has the port or the address, and its flag."""


@dataclass(frozen=True)
class Ports:
    """Of the model server, and the IP address that it listens on."""

    grpc: int
    rest: int
    host: str = LOOPBACK

    @property
    def grpc_address(self) -> str:
        """host:port by which this machine reaches gRPC."""
        return local_address(self.host, self.grpc)

    @property
    def rest_url(self) -> str:
        """By which this machine reaches REST."""
        return stack.local_url(self.host, self.rest)

    @property
    def addresses(self) -> str:
        """For people."""
        text = f"gRPC {self.grpc_address}, REST {self.rest_url}"
        if stack.official_model_server():
            return f"{text} ({stack.MODEL_SERVER} listens on all addresses of this machine: use a firewall)"
        return text


def serve(config: Settings, ports: Ports) -> None:
    """Runs a model server until this process is told to stop.

    Raises:
        RegistryError: nothing can be served.
        FleetError: what another server of the workdir serves cannot be read.
        ProgramError: it ended.
    """
    with Programs() as programs:
        laptop, rollout, labels = _write_config(config)
        ready = _ready(config, ports)
        programs.start(stack.model_server(laptop.config_file, ready, ports.grpc, ports.rest, host=ports.host))
        _say(f"{_named(config, labels)}: {ports.addresses}")
        with laptop.announced(MODEL_SERVER, ports.grpc_address):
            _catch_up(rollout)
            programs.watch()


def configure(config: Settings, ports: Ports) -> None:
    """Does for a server that somebody else runs on these ports what `serve` does besides running one.

    Raises:
        RegistryError: nothing can be served.
        FleetError: what another server of the workdir serves cannot be read.
    """
    with Programs() as programs:
        laptop, _, labels = _write_config(config)
        _say(f"{_named(config, labels)}: {laptop.config_file}")
        with laptop.announced(MODEL_SERVER, ports.grpc_address):
            programs.watch()


def up(config: Settings, ports: Ports, host: str, gateway_port: int, page_port: int, samples: Path | None) -> None:
    """Runs model server, gateway and page until this process is told to stop.

    Args:
        config: whose workdir is served and gets the logs.
        ports: of the model server.
        host: IP address that gateway and page listen on.
        gateway_port: port of the gateway.
        page_port: port of the page.
        samples: photos to try; None: they are drawn, if the model knows the imaginary breeds.

    Raises:
        RegistryError: nothing can be served.
        FleetError: what another server of the workdir serves cannot be read.
        ProgramError: one of the three ended; the others were stopped.
    """
    logs = Path(config.workdir) / "logs"
    gateway_url, page_url = stack.local_url(host, gateway_port), stack.local_url(host, page_port)
    with Programs() as programs:
        laptop, rollout, labels = _write_config(config)
        _say(f"{_named(config, labels)}; logs: {logs}")
        samples = samples or _draw_samples(config, labels[STABLE])
        server_log, gateway_log, page_log = logs / "model_server.log", logs / "gateway.log", logs / "page.log"
        config_file, traffic_file = laptop.config_file, laptop.traffic_file
        ready, name = _ready(config, ports), config.model_name
        for program, addresses in (
            (stack.model_server(config_file, ready, ports.grpc, ports.rest, server_log), ports.addresses),
            (stack.gateway(host, gateway_port, ports.grpc, name, traffic_file, gateway_log), f"{gateway_url}/docs"),
            (stack.page(host, page_port, gateway_url, samples, page_log), page_url),
        ):
            _say(f"  {program.name:<12} ready after {programs.start(program):>5.1f} s   {addresses}")
        _say(f"Open {page_url} and show it a cat. Ctrl-C stops all three.")
        gateway_address = gateway_url.removeprefix("http://")
        with laptop.announced(MODEL_SERVER, ports.grpc_address), laptop.announced(GATEWAY, gateway_address):
            _catch_up(rollout)
            programs.watch()


def refuse_busy(places: Mapping[str, tuple[str, int]]) -> None:
    """Looks, before anything is started, whether servers can listen there.

    Args:
        places: IP address and port, by the flag that says another port.

    Raises:
        PortError: one cannot.
    """
    flags: dict[int, str] = {}
    for flag, (host, port) in places.items():
        if port in flags:
            raise PortError(f"{flags[port]} and {flag} are both {port}; each needs a port of its own")
        flags[port] = flag
        try:
            listen(host, port).close()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise PortError(
                    f"--host {host}: {error.strerror}; say an address of this machine, or 0.0.0.0 for all"
                ) from None
            raise PortError(f"port {port}: {error.strerror}; say another one with {flag}") from None


def _write_config(config: Settings) -> tuple[LocalFleet, RolloutController, dict[str, int]]:
    """Writes what the model server reads when it starts; returns label -> version beside those who change it later."""
    registry = Registry(config.registry)
    stable = registry.stable()
    if stable is None:
        raise RegistryError(f"{registry.base}: no model is in service there; `catbreeds run` trains and pushes one")
    registry.require_servable(stable)
    laptop = LocalFleet(config.workdir, config.registry)
    rollout = RolloutController(registry, laptop, RolloutLimits(**config.rollout.limits()))
    rollout.sync()
    return laptop, rollout, registry.labels()


def _catch_up(rollout: RolloutController) -> None:
    """Tells the server what was promoted while it started, in the background: it may take a minute."""

    def work() -> None:
        try:
            rollout.sync()
        except RolloutError as error:  # a canary, perhaps; stable serves
            _say(str(error))

    threading.Thread(target=work, daemon=True).start()


def _ready(config: Settings, ports: Ports) -> str:
    """URL that answers 200 while stable serves. That of the model would do so while it is loading."""
    return f"{ports.rest_url}/v1/models/{config.model_name}/labels/{STABLE}/metadata"


def _draw_samples(config: Settings, version: int) -> Path | None:
    from pipeline.datasets.sample_data import BREEDS, write_sample_data

    known = Registry(config.registry).record(version)["breeds"]
    if not 2 <= len(known) <= len(BREEDS) or set(known) != {breed.name for breed in BREEDS[: len(known)]}:
        return None
    folder = _folder(config) / "samples" / str(len(known))
    write_sample_data(folder, breeds=len(known), photos=1, offset=_UNSEEN)
    return folder


def _folder(config: Settings) -> Path:
    return Path(config.workdir).resolve() / "serve"


def _named(config: Settings, labels: Mapping[str, int]) -> str:
    return ", ".join(f"{config.model_name} version {version} is {label}" for label, version in sorted(labels.items()))


def _say(text: str) -> None:
    print(text, flush=True)
