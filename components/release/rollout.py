"""Rollout: what was pushed becomes the canary of the servers that run, or it is said why not."""

import contextlib
from collections.abc import Iterator

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component

from components.artifacts import PushRecord, RolloutRecord
from components.file_names import PUSH_FILE, ROLLOUT_FILE
from components.json_files import read_json, write_json
from serving.registry import Registry
from serving.rollout import controller as driving
from serving.rollout.fleet import Fleet
from serving.rollout.kubernetes_fleet import KubernetesFleet
from serving.rollout.local_fleet import LocalFleet

_NO_SERVER = "no server is running on this machine: nothing to do; `catbreeds up` starts one"


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
    """Makes the version that was pushed the canary; the first one, which is stable already, is told to the servers.

    That a server cannot load it, or answers golden requests wrong, is an outcome and no failure: stable goes on.

    Args:
        registry: base path of the pushed models.
        run_id: differs in each run, so that the servers are always asked.
        namespace: of the cluster whose servers are meant; "": those of this machine.
        models: folder of pushed models as the cluster's servers see it.
        share: of the gateways' requests, for the canary.
        loaded, load_seconds: see `serving.rollout.controller.Limits`.
    """
    push, versions = read_json(pushed.uri, PUSH_FILE), Registry(registry)
    version = push["version"] or _left_over(versions, push["already_pushed_as"])
    with _fleet(versions, namespace, models) as fleet:
        limits = driving.Limits(loaded=loaded, load_seconds=load_seconds)
        text = _roll_out(driving.RolloutController(versions, fleet, limits), versions, fleet, version, share)
    write_json(outcome.uri, ROLLOUT_FILE, {"version": version, "outcome": text})


def _left_over(registry: Registry, version: int | None) -> int | None:
    """A version that an earlier run pushed, if that run was interrupted before it was canary."""
    newer = version is not None and version > (registry.stable() or 0)
    return version if newer and version not in registry.labels().values() and not registry.stopped(version) else None


def _roll_out(
    rollout: driving.RolloutController, registry: Registry, fleet: Fleet, version: int | None, share: float
) -> str:
    if version is None:
        return "nothing was pushed"
    if isinstance(fleet, LocalFleet) and not fleet.servers():
        return _NO_SERVER
    try:
        if version == registry.stable():
            rollout.sync()
            return f"version {version} is stable, the first one"
        golden, _ = rollout.start_canary(version, share)
    except (driving.CannotLoad, driving.CanaryStopped) as error:
        return f"stopped: {error}"
    return (
        f"version {version} is canary with {share:.0%} of the requests; {golden} golden requests answered as measured"
    )


@contextlib.contextmanager
def _fleet(registry: Registry, namespace: str, models: str) -> Iterator[Fleet]:
    if namespace:
        with KubernetesFleet(namespace, registry.base.name, models) as cluster:
            yield cluster
    else:
        yield LocalFleet(registry.base.parent.parent, registry.base)
