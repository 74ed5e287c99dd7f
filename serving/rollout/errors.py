"""Errors of a rollout."""

from serving.rollout.fleet import Conflict


class RolloutError(RuntimeError):
    """The rollout did not finish. The message states the server, the reason and the state of the labels."""


class LoadError(RolloutError):
    """A server cannot load a version."""


class CanaryStopped(RolloutError):
    """The canary performed worse than the stable version and receives no more requests."""


class Superseded(Conflict):
    """The configuration that this rollout wrote is no longer the live one: another process has changed it."""
