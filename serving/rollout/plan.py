"""Plan the steps of a rollout: load versions, move labels, unload versions. Pure functions, no servers."""

import itertools
from typing import NamedTuple

from serving.rollout.serving_config import ServingConfig, make_serving_config


class Step(NamedTuple):
    """One configuration on the way to the goal.

    The next step may start once this configuration is the live one, traffic split included, and every server has loaded
    `required_versions` and has the labels of `config`.

    Attributes:
        config: Configuration to apply.
        required_versions: Versions that every server must have loaded. The other versions of `config` are optional.
        is_write_needed: Whether `config` differs from the live configuration after the previous step.
        is_starting_awaited: Whether servers that are still starting must apply it too.
    """

    config: ServingConfig
    required_versions: frozenset[int]
    is_write_needed: bool
    is_starting_awaited: bool = False


def plan_steps(live: ServingConfig | None, goal: ServingConfig, max_loaded: int, load_only: bool = False) -> list[Step]:
    """Plan the steps from the live configuration to the goal.

    A step never moves a label to a version that the previous step has not loaded, and never unloads a version that a
    label still points to.

    Args:
        live: Live configuration; None before the first rollout.
        goal: Configuration to reach.
        max_loaded: Number of versions that fit into a server's memory.
        load_only: Whether to load the versions that the goal's labels need without moving a label. It has no effect
            without a live configuration: no label can move then.
    """
    if live is None:
        return [Step(goal, frozenset(goal.labeled), is_write_needed=True)]
    kept = [version for version in goal.versions if version in live.versions]
    load = make_serving_config(live.labels, kept, max_loaded, live.canary_share, required=goal.labeled)
    move_labels = goal.with_versions(load.versions)
    configs = [load] if load_only else [load, move_labels, goal]
    configs = [config for config, _ in itertools.groupby(configs)]
    return [
        Step(
            config,
            frozenset(goal.labeled.intersection(config.versions)),
            is_write_needed=config != previous,
            # A server that starts reads the live configuration, so only the last step checks that it did.
            is_starting_awaited=config is configs[-1] and not load_only,
        )
        for previous, config in itertools.pairwise([live, *configs])
    ]


def resend_step(live: ServingConfig) -> Step:
    """Return the step that sends the live configuration to the servers once more."""
    return Step(live, frozenset(live.labeled), is_write_needed=False)
