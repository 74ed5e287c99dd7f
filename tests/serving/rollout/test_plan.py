"""The planned steps of a rollout, without servers: load, move labels, unload."""

import itertools

import pytest

from serving.rollout.plan import Step, plan_steps, resend_step
from serving.rollout.serving_config import ServingConfig, make_serving_config

STABLE_1 = ServingConfig((1,), {"stable": 1})
STABLE_2 = ServingConfig((1, 2), {"stable": 2})
CANARY_2 = ServingConfig((1, 2), {"stable": 1, "canary": 2}, canary_share=0.1)


def test_without_a_live_configuration_the_goal_is_the_only_step():
    assert plan_steps(None, STABLE_1, max_loaded=2) == [Step(STABLE_1, frozenset({1}), is_write_needed=True)]


def test_a_promotion_loads_the_version_then_moves_the_label():
    assert plan_steps(STABLE_1, STABLE_2, max_loaded=2) == [
        Step(ServingConfig((1, 2), {"stable": 1}), frozenset({2}), is_write_needed=True),
        Step(STABLE_2, frozenset({2}), is_write_needed=True, is_starting_awaited=True),
    ]


def test_a_promotion_unloads_the_oldest_version_before_it_loads_a_third_and_keeps_the_stable_one():
    goal = ServingConfig((2, 3), {"stable": 3})
    assert [step.config for step in plan_steps(STABLE_2, goal, max_loaded=2)] == [
        ServingConfig((2, 3), {"stable": 2}),
        goal,
    ]


def test_a_version_is_unloaded_in_a_separate_step_after_the_label_has_moved():
    goal = ServingConfig((2,), {"stable": 2})
    assert [step.config for step in plan_steps(STABLE_1, goal, max_loaded=1)] == [
        ServingConfig((1, 2), {"stable": 1}),
        ServingConfig((1, 2), {"stable": 2}),
        goal,
    ]


def test_load_only_moves_no_label_and_keeps_the_traffic_split():
    goal = ServingConfig((1, 2), {"stable": 1, "canary": 2}, canary_share=0.5)
    assert plan_steps(STABLE_1, goal, max_loaded=2, load_only=True) == [
        Step(ServingConfig((1, 2), {"stable": 1}), frozenset({1, 2}), is_write_needed=True)
    ]


def test_a_canary_gets_requests_only_after_every_server_has_loaded_it():
    load, start = plan_steps(STABLE_1, CANARY_2, max_loaded=2)
    assert (load.config.canary_share, load.required_versions) == (0.0, {1, 2})
    assert start.config == CANARY_2


def test_a_canary_loses_its_requests_and_its_label_before_it_is_unloaded():
    goal = ServingConfig((1,), {"stable": 1})
    (stop, unload) = plan_steps(CANARY_2, goal, max_loaded=2)[-2:]
    assert (stop.config.labels, stop.config.versions, stop.config.canary_share) == ({"stable": 1}, (1, 2), 0.0)
    assert unload.config == goal


def test_at_the_goal_the_only_step_sends_the_configuration_again_without_a_write():
    assert plan_steps(STABLE_2, STABLE_2, max_loaded=2) == [
        Step(STABLE_2, frozenset({2}), is_write_needed=False, is_starting_awaited=True)
    ]


def test_sending_the_live_configuration_again_writes_nothing_and_does_not_wait_for_starting_servers():
    assert resend_step(CANARY_2) == Step(CANARY_2, frozenset({1, 2}), is_write_needed=False, is_starting_awaited=False)


def configs(canaries: tuple[int | None, ...] = (None, 1, 2, 3)) -> list[ServingConfig]:
    """Configurations of versions 1 to 3 with every label combination and two versions in memory."""
    found = []
    for stable, canary, optional in itertools.product((1, 2, 3), canaries, (1, 2, 3)):
        if canary != stable:
            labels = {"stable": stable} | ({"canary": canary} if canary else {})
            found.append(make_serving_config(labels, [optional], max_loaded=2, canary_share=0.1))
    return found


@pytest.mark.parametrize("load_only", [False, True])
@pytest.mark.parametrize("max_loaded", [1, 2, 3])
def test_no_step_moves_a_label_to_an_unloaded_version_or_unloads_a_labeled_version(max_loaded, load_only):
    for live, goal in itertools.product(configs(), configs()):
        steps = plan_steps(live, goal, max_loaded, load_only)
        for before, after in itertools.pairwise([live, *(step.config for step in steps)]):
            moved = {version for label, version in after.labels.items() if before.labels.get(label) != version}
            assert moved <= set(before.versions)
            assert before.labeled <= set(after.versions)
        assert [step.is_write_needed for step in steps] == [
            step.config != before for before, step in zip([live, *(step.config for step in steps)], steps, strict=False)
        ]
        assert all(step.required_versions == goal.labeled & set(step.config.versions) for step in steps)
        last = steps[-1]
        if load_only:
            assert (last.config.labels, last.config.canary_share) == (live.labels, live.canary_share)
            assert goal.labeled <= set(last.config.versions)
        else:
            assert last.config == goal
        assert [step.is_starting_awaited for step in steps] == [False] * (len(steps) - 1) + [not load_only]


def test_a_promotion_never_loads_more_versions_than_fit_in_memory():
    for live, target in itertools.product(configs((None,)), (1, 2, 3)):
        goal = make_serving_config({"stable": target}, live.labels.values(), max_loaded=2)
        assert all(len(step.config.versions) <= 2 for step in plan_steps(live, goal, max_loaded=2))
