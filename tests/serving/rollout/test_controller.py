"""What promote and rollback promise to users, on several servers under traffic."""

import pytest

from serving.rollout.controller import RolloutController
from serving.rollout.errors import LoadError
from serving.rollout.limits import RolloutLimits
from serving.rollout.serving_config import ServingConfig
from tests.serving.model_server.servers import eventually
from tests.serving.rollout.traffic import traffic


@pytest.fixture
def servers(join):
    return join(3)


@pytest.fixture
def rollout(registry, laptop, servers) -> RolloutController:
    """Version 1 serves."""
    rollout = RolloutController(registry, laptop, RolloutLimits(loaded=2, poll_seconds=1))
    rollout.sync()
    return rollout


@pytest.fixture
def stable(servers, registry):
    """The versions that answer, by server."""
    return lambda: [server.added(registry.base.name, "stable") for server in servers]


@pytest.fixture
def loaded(servers, registry):
    """Whether every server has these versions in its memory, and no others."""

    def loaded(*versions: int) -> bool:
        states = [server.states(registry.base.name) for server in servers]
        return all({v for v, state in told.items() if state != "END"} == set(versions) for told in states)

    return loaded


def test_promote_and_rollback_move_every_server_and_no_request_fails(rollout, registry, servers, stable, loaded):
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.answered.get(1))
        for version in (2, 3):
            before, told = rollout.promote(version)
            assert (before, len(told.servers), told.starting) == (version - 1, 3, [])
            assert stable() == [version] * 3
            eventually(lambda version=version: loaded(version - 1, version))
        assert rollout.rollback()[:2] == (3, 2)
        assert stable() == [2] * 3
        assert rollout.rollback()[:2] == (2, 1)
        assert stable() == [1] * 3
    assert registry.labels() == {"stable": 1}
    assert set(sent.answered) == {1, 2, 3}


def test_what_a_server_cannot_load_changes_nothing_and_is_told_by_its_name(rollout, registry, servers, stable, loaded):
    rollout.promote(2)
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.answered.get(2))
        with pytest.raises(LoadError, match=r"model-server at 127.0.0.1:.* cannot load version 4: "):
            rollout.promote(4)
        assert stable() == [2] * 3
        eventually(lambda: loaded(1, 2))
    assert registry.labels() == {"stable": 2}
    with pytest.raises(LoadError):  # a try that failed is no reason to say so too early, or not at all
        rollout.promote(4)
    assert rollout.rollback()[:2] == (2, 1)


def test_a_server_that_missed_changes_is_brought_to_the_end_of_them_while_it_answers(
    rollout, registry, servers, stable, laptop
):
    registry.promote(3)
    laptop.write(ServingConfig((3,), {"stable": 3}), laptop.read()[1])  # and nobody told the servers
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.answered.get(1))
        rollout.sync()
        assert stable() == [3] * 3


def test_versions_beyond_what_is_kept_are_removed_but_not_what_is_loaded(rollout, registry, laptop):
    rollout = RolloutController(registry, laptop, RolloutLimits(loaded=2, keep=1))
    assert rollout.promote(2)[1].removed == []  # 1 is the way back
    assert rollout.promote(3)[1].removed == [1]
    assert registry.versions() == [2, 3, 4]
    assert rollout.rollback()[:2] == (3, 2)
