"""Rollout: starts the pushed version as the canary on the running model servers, or reports why it cannot."""

import contextlib
from collections.abc import Iterator

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component

from components.artifacts import PushRecord, RolloutRecord
from components.file_names import PUSH_FILE, ROLLOUT_FILE
from components.json_files import read_json, write_json
from serving.names import counted
from serving.registry import Registry
from serving.rollout.controller import RolloutController
from serving.rollout.errors import CanaryStopped, LoadError
from serving.rollout.fleet import Fleet
from serving.rollout.kubernetes_fleet import KubernetesFleet
from serving.rollout.limits import RolloutLimits
from serving.rollout.local_fleet import LocalFleet

_NO_SERVER = "no server is running on this machine; `catbreeds up` starts one"


@component
def Rollout(
    pushed: InputArtifact[PushRecord],
    outcome: OutputArtifact[RolloutRecord],
    registry: Parameter[str],
    run_id: Parameter[str],
    namespace: Parameter[str],
    models: Parameter[str],
    share: Parameter[float],
    loaded: Parameter[int],
    load_seconds: Parameter[float],
):
    """Make the pushed version the canary. The first version is already stable; the servers only load it.

    If a server cannot load the version or fails its golden requests, the component succeeds and records this outcome;
    the stable version keeps serving.

    Args:
        registry: Base path of the pushed models.
        run_id: ID of the run. It differs in each run, so that this component is never cached.
        namespace: Kubernetes namespace of the servers; "" for servers on this machine.
        models: Folder of the pushed models as mounted in the cluster's servers.
        share: Share of the gateways' requests for the canary.
        loaded: Number of versions that fit in a model server's memory.
        load_seconds: Timeout for a model server to load a version.
    """
    push, versions = read_json(pushed.uri, PUSH_FILE), Registry(registry)
    version = push["version"] or _interrupted_rollout(versions, push["already_pushed_as"])
    with _fleet(versions, namespace, models) as fleet:
        limits = RolloutLimits(loaded_versions=loaded, load_seconds=load_seconds)
        text = _roll_out(RolloutController(versions, fleet, limits), versions, fleet, version, share)
    write_json(outcome.uri, ROLLOUT_FILE, {"version": version, "outcome": text})


def _interrupted_rollout(registry: Registry, version: int | None) -> int | None:
    """Return `version` if the run that pushed it was interrupted before it became the canary."""
    is_newer = version is not None and version > (registry.stable() or 0)
    if is_newer and version not in registry.labels().values() and not registry.stop_reason(version):
        return version
    return None


def _roll_out(rollout: RolloutController, registry: Registry, fleet: Fleet, version: int | None, share: float) -> str:
    """Return the outcome as a sentence."""
    if version is None:
        return "no version was pushed"
    if isinstance(fleet, LocalFleet) and not fleet.servers():
        return _NO_SERVER
    try:
        if version == registry.stable():
            rollout.sync()
            return f"version {version} is the first version and already stable"
        golden_count, _ = rollout.start_canary(version, share)
    except (LoadError, CanaryStopped) as error:
        return f"stopped: {error}"
    golden_requests = counted(golden_count, "golden request")
    return f"version {version} is the canary with {share:.0%} of the requests; {golden_requests} passed"


@contextlib.contextmanager
def _fleet(registry: Registry, namespace: str, models: str) -> Iterator[Fleet]:
    if namespace:
        with KubernetesFleet(namespace, registry.base.name, models) as fleet:
            yield fleet
    else:
        yield LocalFleet(registry.base.parent.parent, registry.base)
