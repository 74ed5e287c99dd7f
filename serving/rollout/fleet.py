"""What rollout needs of the place where model servers run."""

from typing import NamedTuple, Protocol

from serving.rollout.serving_config import ServingConfig


class FleetError(RuntimeError):
    """The place does not do what is asked; the message says why and what to do."""


class Conflict(FleetError):
    """The live configuration is not the one that was read: somebody else has changed it."""


class Unreachable(OSError):
    """A process of the fleet does not answer, or cannot be reached from here; the others may."""


class Server(NamedTuple):
    """A process of the fleet.

    Attributes:
        name: for people.
        key: another process under the same name has another.
        ready: it takes requests; else it is starting.
        address: host:port of gRPC or, of a gateway, of HTTP; for `Fleet.reach`. "" if its container has not started.
    """

    name: str
    key: str
    ready: bool
    address: str


class Fleet(Protocol):
    """Servers of one model, and the configuration that they read when they start.

    Attributes:
        model: its name.
        base_path: of its versions, as the servers see it.
        where: the place, for people.
    """

    model: str
    base_path: str
    where: str

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """The live configuration and its revision; None, None if there is none yet.

        Raises:
            FleetError: it cannot be read.
        """

    def write(self, plan: ServingConfig, revision: str | None) -> str:
        """Makes `plan` the live configuration, if that still is of `revision`; returns the new revision.

        Raises:
            Conflict: it is not.
            FleetError: it cannot be written.
        """

    def servers(self) -> list[Server]:
        """Model servers that are ready, and those that may have read the configuration and are starting."""

    def gateways(self) -> list[Server]:
        """Gateways that are ready."""

    def reach(self, server: Server) -> str:
        """host:port under which `server` can be reached from here. May be called by several threads at once.

        Raises:
            Unreachable: there is no way to this server at the moment.
            FleetError: there is no way to any.
        """
