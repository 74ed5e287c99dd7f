"""Apply configurations to a fleet: run planned steps server by server, with retries, conflict checks and undo."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

from serving.rollout.errors import LoadError, RolloutError, Superseded
from serving.rollout.fleet import Conflict, Fleet, FleetError, Server, Unreachable
from serving.rollout.limits import RolloutLimits
from serving.rollout.model_server_client import CallRejected, ModelServerClient
from serving.rollout.plan import Step, plan_steps, resend_step
from serving.rollout.server_update import update_server
from serving.rollout.serving_config import ServingConfig

_MAX_ATTEMPTS = 10
_POLL_SECONDS = 0.1  # between two polls of the servers
_LIVE_POLL_SECONDS = 1.0  # between two reads of the live configuration


class ApplyResult(NamedTuple):
    """How far a configuration has reached the servers.

    Attributes:
        servers: Names of the servers that have applied it.
        starting: Names of the servers that do not listen yet. They may have read an older configuration when they
            started.
        unreachable: Servers that are ready but did not respond in time, and the reasons.
    """

    servers: list[str]
    starting: list[str]
    unreachable: dict[Server, Unreachable]


class ConfigApplier:
    """Applier of configurations to the servers of one fleet.

    Args:
        fleet: Model servers and their live configuration.
        limits: Limits on memory and time.
    """

    def __init__(self, fleet: Fleet, limits: RolloutLimits):
        self._fleet = fleet
        self._limits = limits

    def apply(
        self,
        make_goal: Callable[[ServingConfig | None], ServingConfig],
        load_only: bool = False,
        skip_unreachable: bool = False,
    ) -> ApplyResult:
        """Bring the live configuration and every server to the goal, in the order of `plan_steps`.

        Args:
            make_goal: Function that returns the goal for a live configuration. It is called again after another process
                has changed the live configuration.
            load_only: Whether to load the goal's versions without moving labels.
            skip_unreachable: Whether to bring all other servers to the goal before failing for one that does not
                respond. Otherwise the rollout stops at the step at which a server does not respond.

        Raises:
            LoadError: If a server cannot load a version. The live configuration and all servers are as before.
            RolloutError: If a server does not respond, or other processes keep changing the configuration.
            FleetError: If the live configuration cannot be read or written.
        """
        for _ in range(_MAX_ATTEMPTS):
            # The configuration is read first: a process that changes the registry later also changes the configuration
            # after this read, so the conflict is detected.
            live, revision = self._fleet.read()
            goal = make_goal(live)
            try:
                return self._run(
                    plan_steps(live, goal, self._limits.loaded_versions, load_only), live, revision, skip_unreachable
                )
            except Superseded:
                # Two processes that only load could unload each other's version forever, so the first one ends.
                live, _ = self._fleet.read()
                unloaded = goal.labeled - set(live.versions if live else goal.versions)
                if load_only and unloaded:
                    self._resend_live()
                    raise RolloutError(
                        f"{self._fleet.description}: another rollout is running and has unloaded version "
                        f"{min(unloaded)}; no label was moved; try again when the other rollout has finished"
                    ) from None
            except Conflict:
                continue
        self._resend_live()
        raise RolloutError(
            f"{self._fleet.description}: the live configuration changed {_MAX_ATTEMPTS} times during the rollout; "
            "try again"
        )

    def _run(
        self, steps: list[Step], live: ServingConfig | None, revision: str | None, skip_unreachable: bool
    ) -> ApplyResult:
        """Run the steps; every server must have applied a step before the next one starts."""
        unreachable: dict[Server, Unreachable] = {}
        for step in steps:
            if step.is_write_needed:
                revision = self._fleet.write(step.config, revision)
            try:
                result = self._send_to_all(step, revision, ignored=unreachable)
            except LoadError:
                if live:
                    self._undo(live, step, revision)
                raise
            unreachable |= result.unreachable
            if unreachable and not skip_unreachable:
                break
        if unreachable and not self._is_superseded(revision):
            server, error = next(iter(unreachable.items()))
            moved = "all other servers were updated" if skip_unreachable else "the rollout stopped before the next step"
            raise RolloutError(f"{server.name} does not respond: {error}; {moved}; try again")
        if self._fleet.read()[1] != revision:
            raise self._superseded()
        return result

    def _undo(self, live: ServingConfig, step: Step, revision: str) -> None:
        """Restore the live configuration from before the rollout, unless another process has changed it."""
        with contextlib.suppress(FleetError):
            if step.config != live:
                self._fleet.write(live, revision)
        self._resend_live()

    def _resend_live(self) -> None:
        """Send the live configuration to all servers that respond.

        A configuration of this rollout may have reached a server after the newer configuration of another process.
        """
        with contextlib.suppress(FleetError, RolloutError):
            for _ in range(_MAX_ATTEMPTS):
                live, revision = self._fleet.read()
                if live is None:
                    return
                with contextlib.suppress(Superseded):
                    self._send_to_all(resend_step(live), revision)
                    if not self._is_superseded(revision):
                        return

    def _send_to_all(self, step: Step, revision: str, ignored: Collection[Server] = ()) -> ApplyResult:
        """Bring every server to the step's configuration, including servers that start meanwhile.

        Args:
            step: Step whose configuration is the live one.
            revision: Revision of that live configuration.
            ignored: Servers that did not respond at an earlier step. They are updated if they respond, but not awaited.

        Raises:
            Superseded: If another process has changed the live configuration.
            LoadError: If a server cannot load a version.
            RolloutError: If a server rejects the configuration.
        """
        updated: dict[str, str] = {}  # name by key
        ignored_keys = {server.key for server in ignored}
        deadline = time.monotonic() + self._limits.starting_seconds
        while pending := [server for server in self._fleet.servers() if server.key not in updated]:
            listening = [server for server in pending if server.address]
            errors = self._update(listening, step, revision)
            updated |= {server.key: server.name for server in listening if server not in errors}
            failed = [server for server in pending if server.key not in updated]
            awaited = [
                server
                for server in failed
                if server.key not in ignored_keys and (server.ready or step.is_starting_awaited)
            ]
            if failed and (not awaited or time.monotonic() > deadline):
                starting = sorted(server.name for server in failed if not server.ready)
                unreachable = {server: errors[server] for server in failed if server.ready}
                return ApplyResult(sorted(updated.values()), starting, unreachable)
            if failed:
                time.sleep(_POLL_SECONDS)
        return ApplyResult(sorted(updated.values()), [], {})

    def _update(self, servers: list[Server], step: Step, revision: str) -> dict[Server, Unreachable]:
        """Bring the servers to the step's configuration in parallel; return those that do not respond."""
        if not servers:
            return {}
        canceled = threading.Event()
        with ThreadPoolExecutor(len(servers)) as threads:
            try:
                updates = [threads.submit(self._update_one, server, step, canceled) for server in servers]
                while wait(updates, _LIVE_POLL_SECONDS).not_done:
                    if self._is_superseded(revision):
                        raise self._superseded()
            finally:
                canceled.set()  # stops the threads that wait for their servers
        errors: dict[Server, Unreachable] = {}
        for server, update in zip(servers, updates, strict=True):
            try:
                update.result()
            except Unreachable as error:
                errors[server] = error
            except (CallRejected, LoadError) as error:
                if self._is_superseded(revision):  # the other process caused the error
                    raise self._superseded() from None
                if isinstance(error, LoadError):
                    raise
                raise RolloutError(f"{server.name} rejects the configuration: {error}") from None
        return errors

    def _update_one(self, server: Server, step: Step, canceled: threading.Event) -> None:
        with ModelServerClient(self._fleet.reachable_address(server), self._fleet.model_name) as client:
            update_server(server.name, client, self._fleet.base_path, step, self._limits, canceled)

    def _is_superseded(self, revision: str | None) -> bool:
        """Return whether another process has changed the live configuration; False while it cannot be read."""
        try:
            return self._fleet.read()[1] != revision
        except FleetError:
            return False

    def _superseded(self) -> Superseded:
        return Superseded(f"{self._fleet.description}: another process has changed the live configuration")
