"""Bring one model server to a configuration."""

import dataclasses
import threading
import time
from collections.abc import Collection, Mapping

from serving.labels import CANARY, STABLE
from serving.rollout.errors import LoadError, Superseded
from serving.rollout.limits import RolloutLimits
from serving.rollout.model_server_client import ModelServerClient, VersionNotAvailable, VersionState
from serving.rollout.plan import Step
from serving.rollout.serving_config import ServingConfig

_POLL_SECONDS = 0.1


def update_server(
    name: str,
    server: ModelServerClient,
    base_path: str,
    step: Step,
    limits: RolloutLimits,
    canceled: threading.Event,
) -> None:
    """Apply the step's configuration to one server, whose current configuration may be any earlier one.

    The server keeps the versions that its labels point to until the labels have moved.

    Args:
        name: Name of the server for messages.
        server: Connection to the server.
        base_path: Directory of the model's versions, as the server sees it.
        step: Configuration, and the versions that must be loaded before labels move.
        limits: Time limits.
        canceled: Event that stops the wait for the server when it is set.

    Raises:
        LoadError: If the server cannot load a required version, or does not load it in time.
        Superseded: If another process has unloaded a required version, or `canceled` is set.
        CallRejected: If the server rejects the configuration.
        Unreachable: If the server does not respond.
    """
    config = step.config
    states, labels = server.version_states(), server.labels({*config.labels, STABLE, CANARY})
    transition = config.with_versions({*config.versions, *labels.values()})

    def reload_and_wait(transition_config: ServingConfig) -> None:
        server.reload_config(transition_config, base_path)
        _wait_until_loaded(name, server, step.required_versions, states, limits, canceled)

    try:
        reload_and_wait(transition)
    except VersionNotAvailable:  # the server checks labels before it loads: load with the current labels first
        reload_and_wait(dataclasses.replace(transition, labels=labels))
        try:
            server.reload_config(transition, base_path)
        except VersionNotAvailable:
            if config.labeled <= step.required_versions:
                raise
            # A label points to a version that may be broken on this server; the next step moves the label away.
            return
    if transition != config:
        server.reload_config(config, base_path)


def _wait_until_loaded(
    name: str,
    server: ModelServerClient,
    versions: Collection[int],
    previous_states: Mapping[int, VersionState],
    limits: RolloutLimits,
    canceled: threading.Event,
) -> None:
    """Wait until the server has loaded the versions.

    `previous_states` are the states from before the request to load: an old error may still be reported.
    """
    started = time.monotonic()
    seen: set[int] = set()
    while True:
        states = server.version_states()
        missing = [version for version in versions if version not in states or not states[version].available]
        if not missing:
            return
        waited = time.monotonic() - started
        seen |= {version for version, state in states.items() if not state.unloaded}
        for version in missing:
            if version not in states or not states[version].unloaded:
                continue
            is_current = waited > limits.poll_seconds  # before, the state may be that of an earlier configuration
            error = states[version].error
            is_new = version not in previous_states or previous_states[version].error != error
            if error and (is_new or is_current):
                raise LoadError(f"{name} cannot load version {version}: {error}")
            if not error and (version in seen or is_current):
                raise Superseded(f"{name}: another process has unloaded version {version}")
        if canceled.wait(_POLL_SECONDS):
            raise Superseded(f"{name}: the rollout was canceled")
        if waited > limits.load_seconds:
            raise LoadError(f"{name} has not loaded version {missing[0]} within {limits.load_seconds:g} s")
