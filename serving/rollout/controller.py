"""Promote versions, roll them back and run canaries: update the registry's labels and the servers together.

The registry holds the labels. The live configuration is a ConfigMap or a file in the workdir. Servers read it when they
start; each change of it is also sent to the running servers. No server ever has a label that points to a version it has
not loaded. After an interruption at any point, the same call finishes the work.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.client import ClientError
from serving.labels import CANARY, STABLE
from serving.precision import tolerances
from serving.registry import Registry
from serving.rollout.apply import ConfigApplier
from serving.rollout.canary_analysis import CanaryAnalysis, Outcome, RequestStats, compare, read_request_stats
from serving.rollout.errors import CanaryStopped, LoadError, RolloutError
from serving.rollout.fleet import Fleet, Unreachable
from serving.rollout.golden_requests import GoldenRequestFailed, check_golden_requests, read_golden_requests
from serving.rollout.limits import CanaryCriteria, RolloutLimits
from serving.rollout.model_server_client import ModelServerClient
from serving.rollout.serving_config import ServingConfig, make_serving_config

_STATS_POLL_SECONDS = 1.0


class RolloutResult(NamedTuple):
    """Result of a rollout.

    Attributes:
        servers: Names of the servers that have the new configuration.
        starting: Names of the servers that do not listen yet. They may have read an older configuration when they
            started.
        removed: Old versions that were removed from the registry.
    """

    servers: list[str]
    starting: list[str]
    removed: list[int]


class RolloutController:
    """Controller of the versions of one registry on one fleet.

    Args:
        registry: Versions and their labels.
        fleet: Servers of the model.
        limits: Limits on memory, disk space and time.
    """

    def __init__(self, registry: Registry, fleet: Fleet, limits: RolloutLimits = RolloutLimits()):  # noqa: B008, immutable
        self._registry = registry
        self._fleet = fleet
        self._limits = limits
        self._applier = ConfigApplier(fleet, limits)

    def promote(self, version: int) -> tuple[int | None, RolloutResult]:
        """Make `version` stable once every ready server has loaded it, and remove its canary label.

        Returns:
            The previous stable version, and the result on the servers.

        Raises:
            RegistryError: If there is no such version, or it is damaged.
            LoadError: If a server cannot load the version; the previous version stays stable.
            RolloutError: If a server does not respond; try again.
            FleetError: If the fleet cannot be read or changed; try again.
        """
        self._registry.require_servable(version)
        self._stop_other_canary(version, f"version {version} was promoted")
        self._apply(lambda: {**self._registry.labels(), STABLE: version}, load_only=True)
        previous = self._registry.promote(version)
        if self._registry.labels().get(CANARY) == version:
            self._registry.unlabel(CANARY, "")
        try:
            result = self.sync()
        except LoadError:  # from a server that started meanwhile
            if previous != version and self._registry.stable() == version:
                self._registry.rollback()
            raise
        self._require_label(STABLE, version)
        return previous, result._replace(removed=self._remove_old_versions())

    def rollback(self) -> tuple[int, int, RolloutResult]:
        """Make the previous stable version stable again.

        A server that does not respond does not block the others. The registry is changed last: after an interruption
        before that, the same call goes back to the same version, not one version further.

        Returns:
            The version that was stable, the version that is stable now, and the result on the servers.

        Raises:
            RegistryError: If there is no earlier version.
            LoadError, RolloutError, FleetError: See `promote`.
        """
        *_, target = self._registry.require_rollback_targets()
        self._stop_other_canary(target, f"stable was rolled back to version {target}")
        result = self._apply(lambda: {**self._registry.labels(), STABLE: target}, skip_unreachable=True)
        previous, stable = self._registry.rollback(target=target)
        if stable != target:  # another process has moved the label meanwhile
            result = self.sync()
        return previous, stable, result

    def start_canary(self, version: int, share: float) -> tuple[int, RolloutResult]:
        """Make `version` the canary: load it, check its golden requests, then send it `share` of the requests.

        Returns:
            Number of golden requests of the version, and the result on the servers.

        Raises:
            CanaryStopped: If a server fails a golden request; no client request has reached the version.
            RegistryError, LoadError, RolloutError, FleetError: See `promote`. The version can become the canary later.
        """
        self._registry.require_servable(version)
        if version == self._registry.stable():
            raise RolloutError(f"version {version} is already stable")
        self._stop_other_canary(version, f"version {version} became canary")
        self._apply(lambda: {**self._registry.labels(), CANARY: version}, load_only=True)
        golden_count = self._check_golden_requests(version)
        self._registry.promote(version, CANARY)
        if version == self._registry.stable():  # another process has promoted it meanwhile
            self.stop_canary("", version)
            raise RolloutError(f"version {version} is already stable")
        result = self._apply(self._registry.labels, share)
        self._require_label(CANARY, version)
        return golden_count, result

    def check_canary(
        self,
        seconds: float,
        criteria: CanaryCriteria = CanaryCriteria(),  # noqa: B008, immutable
    ) -> tuple[int, CanaryAnalysis]:
        """Check the canary's golden requests, then compare it with stable by the gateways' metrics from now on.

        Args:
            seconds: Maximum time to collect metrics.
            criteria: Criteria that the canary must meet.

        Returns:
            The canary's version and the analysis.

        Raises:
            CanaryStopped: If the canary is worse; the stable version receives all requests again.
            RolloutError: If there is no canary, or a server or a gateway does not respond.
        """
        version = self._registry.labels().get(CANARY)
        if version is None:
            raise RolloutError(
                f"{self._registry.base}: no version is canary; start one with `catbreeds promote VERSION --canary`"
            )
        self._check_golden_requests(version)
        deadline, baseline = time.monotonic() + seconds, self._request_stats()
        if not baseline:
            raise RolloutError(f"{self._fleet.description}: no gateway is running, so there are no requests to compare")
        while True:
            totals = {CANARY: RequestStats(), STABLE: RequestStats()}
            for gateway, stats in self._request_stats().items():
                first = baseline.setdefault(gateway, stats)  # a new gateway counts from its first stats
                for label in totals:
                    totals[label] += stats.get(label, RequestStats()).since(first.get(label, RequestStats()))
            analysis = compare(totals[CANARY], totals[STABLE], criteria)
            if analysis.outcome is Outcome.FAIL:
                self.stop_canary(analysis.reason, version)
                raise CanaryStopped(f"version {version}: canary stopped: {analysis.reason}")
            if analysis.outcome is Outcome.PASS or time.monotonic() >= deadline:
                return version, analysis
            time.sleep(min(_STATS_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def stop_canary(self, reason: str, version: int | None = None) -> tuple[int | None, RolloutResult]:
        """Send all requests to stable again. A server that does not respond does not block the others.

        Args:
            reason: Reason to record in the registry.
            version: Version to stop; another canary keeps running. None stops any canary.

        Returns:
            The version that was canary, if any, and the result on the servers.

        Raises:
            RolloutError, FleetError: See `promote`; the same call finishes the work.
        """
        return self._registry.unlabel(CANARY, reason, version), self.sync(skip_unreachable=True)

    def sync(self, skip_unreachable: bool = False) -> RolloutResult:
        """Bring the servers to the labels of the registry.

        Args:
            skip_unreachable: Whether a server that does not respond is reported only after all others were updated,
                instead of blocking them.

        Raises:
            LoadError, RolloutError, FleetError: See `promote`.
        """
        return self._apply(self._registry.labels, skip_unreachable=skip_unreachable)

    def _apply(
        self,
        read_labels: Callable[[], Mapping[str, int]],
        canary_share: float | None = None,
        load_only: bool = False,
        skip_unreachable: bool = False,
    ) -> RolloutResult:
        """Bring the servers to the labels; see `ConfigApplier.apply`.

        `read_labels` is called again after a conflict. A `canary_share` of None keeps the current one.
        """

        def goal(live: ServingConfig | None) -> ServingConfig:
            current_share = live.canary_share if live else 0.0
            return self._goal(read_labels(), current_share if canary_share is None else canary_share)

        applied = self._applier.apply(goal, load_only, skip_unreachable)
        return RolloutResult(applied.servers, applied.starting, [])

    def _goal(self, labels: Mapping[str, int], canary_share: float) -> ServingConfig:
        if STABLE not in labels:
            raise RolloutError(f"{self._registry.base}: no model was pushed; train and push one with `catbreeds run`")
        rollback_versions = reversed(self._registry.rollback_targets())
        return make_serving_config(labels, rollback_versions, self._limits.loaded_versions, canary_share)

    def _stop_other_canary(self, version: int, reason: str) -> None:
        """Stop a canary that is not `version`: servers have no memory for three versions with requests."""
        canary = self._registry.labels().get(CANARY, version)
        if canary != version:
            self.stop_canary(reason, canary)

    def _require_label(self, label: str, version: int) -> None:
        """Raise RolloutError if another process has moved `label` away from `version` during the rollout."""
        current = self._registry.labels().get(label)
        if current != version:
            reason = self._registry.stop_reason(version) or (
                f"version {current} is {label} now" if current else "the label was removed"
            )
            raise RolloutError(
                f"version {version} is no longer {label}: {reason}; list the labels with `catbreeds models`"
            )

    def _check_golden_requests(self, version: int) -> int:
        """Check the golden requests on each ready server; return their number.

        A wrong prediction stops the canary. A server that does not respond does not stop it.
        """
        requests = read_golden_requests(self._registry.path(version))
        allowed = tolerances(self._registry.record(version))
        for server in self._fleet.servers() if requests else []:
            if not server.ready:
                continue
            try:
                address = self._fleet.reachable_address(server)
                check_golden_requests(address, self._fleet.model_name, version, requests, allowed)
            except GoldenRequestFailed as error:
                self.stop_canary(f"{server.name}: {error}", version)
                raise CanaryStopped(f"version {version} cannot be canary: {server.name}: {error}") from None
            except (ClientError, Unreachable) as error:
                raise RolloutError(
                    f"{server.name} does not respond to a golden request for version {version}: {error}; try again"
                ) from None
        return len(requests)

    def _request_stats(self) -> dict[str, dict[str, RequestStats]]:
        """Return the stats by label of each gateway that responds, by the gateway's key."""
        stats, failure = {}, None
        for gateway in self._fleet.gateways():
            try:
                stats[gateway.key] = read_request_stats(self._fleet.reachable_address(gateway))
            except OSError as error:
                failure = RolloutError(f"cannot read the metrics of {gateway.name}: {error}; try again")
        if failure and not stats:
            raise failure
        return stats

    def _remove_old_versions(self) -> list[int]:
        """Remove versions beyond the limit that have no label and that no server has loaded.

        It removes none if a server does not report its versions.
        """
        live, _ = self._fleet.read()
        if live is None:
            return []
        versions = self._registry.versions()
        stable = live.labels[STABLE]
        old = {version for version in versions[: -self._limits.keep_versions] if version < stable} - set(live.versions)
        for server in self._fleet.servers():
            if not server.address:
                return []
            try:
                with ModelServerClient(self._fleet.reachable_address(server), self._fleet.model_name) as client:
                    old -= {version for version, state in client.version_states().items() if not state.unloaded}
            except Unreachable:
                return []
        return self._registry.remove(old)
