"""Moves labels, in an order that never leaves a server with a label to what it has not loaded.

Interrupted anywhere, the same call again finishes.

The registry says what labels there shall be; the live configuration (a ConfigMap, or a file of the workdir) is what
servers read when they start; a change of it goes at once to every server that runs.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

from serving.client import ClientError
from serving.labels import STABLE
from serving.registry import Registry
from serving.rollout.canary_analysis import Outcome, Rules, Traffic, Verdict, compare, read_traffic
from serving.rollout.fleet import Conflict, Fleet, FleetError, Server, Unreachable
from serving.rollout.golden_requests import WrongAnswer, ask_golden, read_golden
from serving.rollout.model_server_client import ModelServerClient, NotYet, Refused, VersionState
from serving.rollout.serving_config import CANARY, ServingConfig, make_serving_config

_TRIES = 10
_LOOK_SECONDS = 0.1
_LIVE_SECONDS = 1.0  # between two looks at the live configuration
_TRAFFIC_SECONDS = 1.0


class RolloutError(RuntimeError):
    """Nothing was moved, or what was moved is put back; the message says by whom and why."""


class CannotLoad(RolloutError):
    """A server cannot load a version."""


class CanaryStopped(RolloutError):
    """A canary was worse than stable, and gets no requests any more."""


class Overtaken(Conflict):
    """What was written is not the live configuration any more."""


class Limits(NamedTuple):
    """What rollout may use.

    Attributes:
        loaded: versions that a server has memory for; 2 keep the way back loaded.
        keep: newest versions that stay in the registry whatever points to them.
        load_seconds: for a server to load a version.
        starting_seconds: for a server that is starting to listen.
        poll_seconds: in which a server has looked for versions (--file_system_poll_wait_seconds): until then an error
            may be that of an earlier try.
    """

    loaded: int = 2
    keep: int = 10
    load_seconds: float = 600
    starting_seconds: float = 60
    poll_seconds: float = 15


class Told(NamedTuple):
    """Where a configuration has arrived.

    Attributes:
        servers: names of those that serve it.
        starting: names of those that did not listen yet. They may have read an older one at their start.
        removed: old versions that are not in the registry any more.
    """

    servers: list[str]
    starting: list[str]
    removed: list[int]


class RolloutController:
    """Drives one registry and the servers of one place.

    Args:
        registry: which versions there are, and their labels.
        fleet: where they are served.
        limits: what may be used.
    """

    def __init__(self, registry: Registry, fleet: Fleet, limits: Limits = Limits()):  # noqa: B008, it is immutable
        self._registry = registry
        self._fleet = fleet
        self._limits = limits

    def promote(self, version: int) -> tuple[int | None, Told]:
        """Makes `version` stable: for users once every ready server has loaded it. If it was the canary, it is no more.

        Returns:
            The version that was stable, and where it is served.

        Raises:
            RegistryError: there is no such version, or it is damaged.
            CannotLoad: a server cannot load it; the version that was stable goes on.
            RolloutError: a server does not answer; try again.
            FleetError: the place cannot be read or changed; try again.
        """
        self._registry.require_servable(version)
        self._make_room(version, f"version {version} was promoted")
        self._serve(lambda: {**self._registry.labels(), STABLE: version}, only_load=True)
        before = self._registry.promote(version)
        if self._registry.labels().get(CANARY) == version:
            self._registry.unlabel(CANARY, "")
        try:
            told = self.sync()
        except CannotLoad:  # a server that came between
            if before != version and self._registry.stable() == version:
                self._registry.rollback()
            raise
        self._require_label(STABLE, version)
        return before, told._replace(removed=self._remove_old())

    def rollback(self) -> tuple[int, int, Told]:
        """Makes the version stable that was it before.

        The registry is changed last: interrupted before, the same call again goes to the same version, not one further.
        A server that does not answer holds up none of the others.

        Returns:
            The version that was stable, the one that is it now, and where it is served.

        Raises:
            RegistryError: there is none to go back to.
            CannotLoad, RolloutError, FleetError: see `promote`.
        """
        *_, target = self._registry.require_before()
        self._make_room(target, f"version {target} was rolled back to")
        told = self._serve(lambda: {**self._registry.labels(), STABLE: target}, insist=False)
        current, now = self._registry.rollback(target=target)
        if now != target:  # somebody else has moved it meanwhile
            told = self.sync()
        return current, now, told

    def start_canary(self, version: int, share: float) -> tuple[int, Told]:
        """Makes `version` the canary: it is loaded, answers golden requests right, then gets `share` of the requests.

        Returns:
            How many golden requests the version has, and where it is served.

        Raises:
            CanaryStopped: a server answers a golden request wrong; no user has seen it.
            RegistryError, CannotLoad, RolloutError, FleetError: see `promote`. The version can become canary later.
        """
        self._registry.require_servable(version)
        if version == self._registry.stable():
            raise RolloutError(f"version {version} is stable already")
        self._make_room(version, f"version {version} became canary")
        self._serve(lambda: {**self._registry.labels(), CANARY: version}, only_load=True)
        golden = self._ask_golden(version)
        self._registry.promote(version, CANARY)
        if version == self._registry.stable():  # somebody has promoted it meanwhile
            self.stop_canary("", version)
            raise RolloutError(f"version {version} is stable already")
        told = self._serve(self._registry.labels, share)
        self._require_label(CANARY, version)
        return golden, told

    def check_canary(self, seconds: float, rules: Rules = Rules()) -> tuple[int, Verdict]:  # noqa: B008
        """Compares the canary with stable by golden requests, and by what the gateways measure from now on.

        Args:
            seconds: to look at the traffic, at most.
            rules: of the comparison.

        Returns:
            The canary's version, and what was found.

        Raises:
            CanaryStopped: it is worse; stable gets all requests again.
            RolloutError: there is no canary, or a server or a gateway does not answer.
        """
        version = self._registry.labels().get(CANARY)
        if version is None:
            raise RolloutError(f"{self._registry.base}: no version is canary; `catbreeds promote VERSION --canary`")
        self._ask_golden(version)
        end, before = time.monotonic() + seconds, self._traffic()
        if not before:
            raise RolloutError(f"{self._fleet.where}: no gateway is running, so there is no traffic to compare by")
        while True:
            totals = {CANARY: Traffic(), STABLE: Traffic()}
            for gateway, seen in self._traffic().items():
                first = before.setdefault(gateway, seen)  # one that was not there before counts from here
                for label in totals:
                    totals[label] += seen.get(label, Traffic()).since(first.get(label, Traffic()))
            verdict = compare(totals[CANARY], totals[STABLE], rules)
            if verdict.outcome is Outcome.BAD:
                self.stop_canary(verdict.reason, version)
                raise CanaryStopped(f"version {version} is not canary any more: {verdict.reason}")
            if verdict.outcome is Outcome.GOOD or time.monotonic() >= end:
                return version, verdict
            time.sleep(min(_TRAFFIC_SECONDS, max(0.0, end - time.monotonic())))

    def stop_canary(self, reason: str, version: int | None = None) -> tuple[int | None, Told]:
        """Takes all requests back from the canary. A server that does not answer holds up none of the others.

        Args:
            reason: is kept in the registry.
            version: another canary goes on; None: whichever it is.

        Returns:
            The version that was it, if there was one, and where what is left is served.

        Raises:
            RolloutError, FleetError: see `promote`; the same call again finishes.
        """
        return self._registry.unlabel(CANARY, reason, version), self.sync(insist=False)

    def _make_room(self, version: int, why: str) -> None:
        """Ends a canary that is not `version`: servers have no memory for three versions that are all asked for."""
        canary = self._registry.labels().get(CANARY, version)
        if canary != version:
            self.stop_canary(why, canary)

    def _require_label(self, label: str, version: int) -> None:
        """Fails if somebody else has moved `label` from `version` while the servers were told."""
        now = self._registry.labels().get(label)
        if now != version:
            why = self._registry.stopped(version) or (f"version {now} is it now" if now else "the label was removed")
            raise RolloutError(f"version {version} is not {label} any more: {why}; `catbreeds models` shows the labels")

    def _ask_golden(self, version: int) -> int:
        """Asks each server that is ready. A wrong answer stops the canary; that a server gives none stops nothing."""
        golden = read_golden(self._registry.path(version))
        for server in self._fleet.servers() if golden else []:
            if not server.ready:
                continue
            try:
                ask_golden(self._fleet.reach(server), self._fleet.model, version, golden)
            except WrongAnswer as error:
                self.stop_canary(f"{server.name}: {error}", version)
                raise CanaryStopped(f"version {version} cannot be canary: {server.name}: {error}") from None
            except (ClientError, Unreachable) as error:
                raise RolloutError(
                    f"{server.name} does not answer a golden request for version {version}: {error}; try again"
                ) from None
        return len(golden)

    def _traffic(self) -> dict[str, dict[str, Traffic]]:
        """Traffic by label of each gateway that answers."""
        traffic, failure = {}, None
        for gateway in self._fleet.gateways():
            try:
                traffic[gateway.key] = read_traffic(self._fleet.reach(gateway))
            except OSError as error:
                failure = RolloutError(f"{gateway.name} does not tell its traffic: {error}; try again")
        if failure and not traffic:
            raise failure
        return traffic

    def sync(self, insist: bool = True) -> Told:
        """Brings the servers to what the registry says.

        Args:
            insist: a server that does not answer holds up the others; else they go on, and it is told in the end.

        Raises:
            CannotLoad, RolloutError, FleetError: see `promote`.
        """
        return self._serve(self._registry.labels, insist=insist)

    def _serve(
        self,
        labels: Callable[[], Mapping[str, int]],
        share: float | None = None,
        only_load: bool = False,
        insist: bool = True,
    ) -> Told:
        """Brings the servers to `labels`.

        Args:
            labels: is asked again when somebody else has changed the live configuration.
            share: of the canary; None: as it is.
            only_load: loads what `labels` need, and moves none.
            insist: see `sync`.
        """
        for _ in range(_TRIES):
            # In this order: who changes the registry after this also changes the configuration after it was read.
            live, revision = self._fleet.read()
            goal = self._goal(labels(), share if share is not None else live.canary_share if live else 0.0)
            try:
                return self._go(live, revision, goal, only_load, insist)
            except Overtaken:
                # Two who only load would take each other's version away again and again: the first one ends.
                live, _ = self._fleet.read()
                taken = goal.labelled - set(live.versions if live else goal.versions)
                if only_load and taken:
                    self._follow()
                    raise RolloutError(
                        f"{self._fleet.where}: somebody else is rolling out, and took version {min(taken)} from the "
                        "servers; no label was moved, try again when that has ended"
                    ) from None
            except Conflict:
                continue
        self._follow()
        raise RolloutError(f"{self._fleet.where}: the live configuration changed {_TRIES} times meanwhile; try again")

    def _goal(self, labels: Mapping[str, int], share: float) -> ServingConfig:
        if STABLE not in labels:
            raise RolloutError(f"{self._registry.base}: nothing was pushed; `catbreeds run` trains and pushes")
        ways_back = [version for version in reversed(self._registry.before()) if version not in labels.values()]
        return make_serving_config(labels, ways_back, self._limits.loaded, share)

    def _go(
        self, live: ServingConfig | None, revision: str | None, goal: ServingConfig, only_load: bool, insist: bool
    ) -> Told:
        """From `live` to `goal` in steps, each of which every server has taken before the next."""
        steps = [goal]
        if live:
            spares = [version for version in goal.versions if version in live.versions]
            load = make_serving_config(
                live.labels, spares, self._limits.loaded, live.canary_share, needed=goal.labelled
            )
            steps = [load] if only_load else [load, goal.with_versions(load.versions), goal]
        current, silent = live, {}
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            if step == following:
                continue
            if step != current:
                revision = self._fleet.write(step, revision)
            # Servers that are starting read what was just written: only in the end is it asked whether they did.
            last = bool(live) and not (only_load or following)
            try:
                told = self._tell_all(step, revision, goal.labelled, last, silent)
            except CannotLoad:
                if live:
                    self._undo(live, step, revision)
                raise
            if silent and insist:
                break
            current = step
        if silent and not self._is_overtaken(revision):
            server, error = next(iter(silent.items()))
            moved = "nothing more was moved" if insist else "all others have moved"
            raise RolloutError(f"{server.name} does not answer: {error}; {moved}, try again")
        if self._fleet.read()[1] != revision:
            raise self._overtaken()
        return told

    def _undo(self, live: ServingConfig, step: ServingConfig, revision: str) -> None:
        """Back to `live`, unless somebody has changed the configuration meanwhile."""
        with contextlib.suppress(FleetError):
            if step != live:
                self._fleet.write(live, revision)
        self._follow()

    def _follow(self) -> None:
        """Brings servers to the live configuration, as far as they answer.

        A configuration that this command has sent may have reached a server after that of whoever has changed it.
        """
        with contextlib.suppress(FleetError, RolloutError):
            for _ in range(_TRIES):
                live, revision = self._fleet.read()
                if live is None:
                    return
                with contextlib.suppress(Overtaken):
                    self._tell_all(live, revision, live.labelled, last=False, silent={})
                    if not self._is_overtaken(revision):
                        return

    def _tell_all(
        self, plan: ServingConfig, revision: str, needed: Collection[int], last: bool, silent: dict[Server, Unreachable]
    ) -> Told:
        """Brings every server to `plan`, also those that appear meanwhile.

        Args:
            plan: is the live configuration by now.
            revision: of it.
            needed: versions that must serve at the end.
            last: servers that are starting are waited for.
            silent: servers that are ready and did not answer in time; brought up to date, and not waited for again.

        Raises:
            Overtaken: somebody has changed the live configuration meanwhile.
            CannotLoad, RolloutError: see `promote`.
        """
        told: dict[str, str] = {}
        given_up = {server.key for server in silent}
        deadline = time.monotonic() + self._limits.starting_seconds
        while untold := [server for server in self._fleet.servers() if server.key not in told]:
            listening = [server for server in untold if server.address]
            failed: dict[Server, Unreachable | None] = {server: None for server in untold if not server.address}
            for server, error in self._tell_these(listening, plan, revision, needed).items():
                if error:
                    failed[server] = error
                else:
                    told[server.key] = server.name
            waited_for = [server for server in failed if server.key not in given_up and (server.ready or last)]
            if failed and (not waited_for or time.monotonic() > deadline):
                silent |= {server: error for server, error in failed.items() if server.ready}
                starting = [server.name for server in failed if not server.ready]
                return Told(sorted(told.values()), sorted(starting), [])
            if failed:
                time.sleep(_LOOK_SECONDS)
        return Told(sorted(told.values()), [], [])

    def _tell_these(
        self, servers: list[Server], plan: ServingConfig, revision: str, needed: Collection[int]
    ) -> dict[Server, Unreachable | None]:
        """Brings servers to `plan`, all at the same time; None for those that have taken it. See `_tell_all`."""
        if not servers:
            return {}
        ended = threading.Event()
        with ThreadPoolExecutor(len(servers)) as threads:
            try:
                attempts = [threads.submit(self._tell, server, plan, needed, ended) for server in servers]
                while wait(attempts, _LIVE_SECONDS).not_done:
                    if self._is_overtaken(revision):
                        raise self._overtaken()
            finally:
                ended.set()  # no thread waits for its server any longer
        results: dict[Server, Unreachable | None] = {}
        for server, attempt in zip(servers, attempts, strict=True):
            try:
                results[server] = attempt.result()
            except Unreachable as error:
                results[server] = error
            except (Refused, CannotLoad) as error:
                if self._is_overtaken(revision):  # then that is why
                    raise self._overtaken() from None
                if isinstance(error, CannotLoad):
                    raise
                raise RolloutError(f"{server.name} refuses the configuration: {error}") from None
        return results

    def _is_overtaken(self, revision: str) -> bool:
        """Whether somebody has changed the live configuration since `revision`; False while it cannot be read."""
        try:
            return self._fleet.read()[1] != revision
        except FleetError:
            return False

    def _overtaken(self) -> Overtaken:
        return Overtaken(f"{self._fleet.where}: somebody else has just changed the configuration")

    def _tell(self, server: Server, plan: ServingConfig, needed: Collection[int], ended: threading.Event) -> None:
        """Brings one server to `plan`, whatever it was told before: it may have missed changes.

        It keeps what its labels point to until they have moved. When `ended` is set, it is not waited for any more.
        """
        with ModelServerClient(self._fleet.reach(server), self._fleet.model) as connection:
            states, labels = connection.states(), connection.labels({*plan.labels, STABLE, CANARY})
            awaited = {*needed} & set(plan.versions)
            bridge = plan.with_versions({*plan.versions, *labels.values()})
            try:
                connection.push(bridge, self._fleet.base_path)
                self._await_loaded(server.name, connection, awaited, states, ended)
            except NotYet:
                connection.push(dataclasses.replace(bridge, labels=labels), self._fleet.base_path)
                self._await_loaded(server.name, connection, awaited, states, ended)
                try:
                    connection.push(bridge, self._fleet.base_path)
                except NotYet:
                    if plan.labelled <= set(needed):
                        raise
                    return  # what a label leaves may be broken: it goes on to where the label moves
            if bridge != plan:
                connection.push(plan, self._fleet.base_path)

    def _await_loaded(
        self,
        name: str,
        server: ModelServerClient,
        versions: set[int],
        old: Mapping[int, VersionState],
        ended: threading.Event,
    ) -> None:
        """Waits until a server has loaded `versions`.

        Args:
            name: of the server.
            server: the connection to it.
            versions: to wait for.
            old: their states before they were asked for.
            ended: when it is set, there is nothing to wait for any more.

        Raises:
            CannotLoad: it cannot, or takes too long.
            Overtaken: somebody else has told it to unload one, or `ended` is set.
        """
        started = time.monotonic()
        present: set[int] = set()
        while True:
            states = server.states()
            waiting = [version for version in versions if version not in states or not states[version].available]
            if not waiting:
                return
            waited = time.monotonic() - started
            present |= {version for version, state in states.items() if not state.gone}
            for version in waiting:
                if version not in states or not states[version].gone:
                    continue
                late = waited > self._limits.poll_seconds  # before, the state may be that of an earlier configuration
                error = states[version].error
                if error and (version not in old or old[version].error != error or late):
                    raise CannotLoad(f"{name} cannot load version {version}: {error}")
                if not error and (version in present or late):
                    raise Overtaken(f"{name}: version {version} was taken away, somebody else configures the server")
            if ended.wait(_LOOK_SECONDS):
                raise self._overtaken()
            if waited > self._limits.load_seconds:
                raise CannotLoad(f"{name} has not loaded version {waiting[0]} in {self._limits.load_seconds:g} s")

    def _remove_old(self) -> list[int]:
        """Removes versions beyond `keep` that nothing points to and no server has; where one does not say, none."""
        plan, _ = self._fleet.read()
        if plan is None:
            return []
        versions = self._registry.versions()
        stable = plan.labels[STABLE]
        old = {version for version in versions[: -self._limits.keep] if version < stable} - set(plan.versions)
        for server in self._fleet.servers():
            if not server.address:
                return []
            try:
                with ModelServerClient(self._fleet.reach(server), self._fleet.model) as asked:
                    old -= {version for version, state in asked.states().items() if not state.gone}
            except Unreachable:
                return []
        return self._registry.remove(old)
