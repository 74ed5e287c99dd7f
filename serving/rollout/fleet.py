"""Interface to a fleet: the model servers and gateways of one model, and their live configuration."""

from typing import NamedTuple, Protocol

from serving.rollout.serving_config import ServingConfig


class FleetError(RuntimeError):
    """The fleet cannot be read or changed. The message states the reason and the remedy."""


class Conflict(FleetError):
    """Another process has changed the live configuration since it was read."""


class Unreachable(OSError):
    """One server or gateway of the fleet does not respond, or has no route from here. The others may respond."""


class Server(NamedTuple):
    """A model server or gateway of the fleet.

    Attributes:
        name: Name for messages.
        key: Identifier of the process; a restarted process has the same name but another key.
        ready: Whether it accepts requests; otherwise it is starting.
        address: Address, host:port, of gRPC, or of HTTP for a gateway; "" if the container has not started. See
            `Fleet.reachable_address`.
    """

    name: str
    key: str
    ready: bool
    address: str


class Fleet(Protocol):
    """Servers of one model, and the live configuration that they read when they start.

    Attributes:
        model_name: Name of the model.
        base_path: Directory of the model's versions, as the servers see it.
        description: Location of the fleet for messages, such as the namespace.
    """

    model_name: str
    base_path: str
    description: str

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """Return the live configuration and its revision, or (None, None) before the first write.

        Raises:
            FleetError: If it cannot be read.
        """

    def write(self, config: ServingConfig, revision: str | None) -> str:
        """Replace the live configuration if it still has `revision`; return the new revision.

        Raises:
            Conflict: If it has another revision.
            FleetError: If it cannot be written.
        """

    def servers(self) -> list[Server]:
        """Return the ready model servers, and the starting ones that may already have read the configuration."""

    def gateways(self) -> list[Server]:
        """Return the ready gateways."""

    def reachable_address(self, server: Server) -> str:
        """Return the host:port at which this process reaches `server`. Thread-safe.

        Raises:
            Unreachable: If this server cannot be reached at the moment.
            FleetError: If no server can be reached.
        """
