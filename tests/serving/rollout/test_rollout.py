"""What promote and rollback promise to users, on several servers under traffic."""

import pytest

from serving.rollout.rollout import CannotLoad, Limits, Rollout
from tests.serving.model_server.servers import eventually
from tests.serving.rollout.conftest import NAME
from tests.serving.rollout.traffic import traffic


@pytest.fixture
def rollout(registry, laptop) -> Rollout:
    rollout = Rollout(registry, laptop, Limits(loaded=2, starting_seconds=5))
    rollout.sync()
    return rollout


def available(server) -> set[int]:
    return {version for version, state in server.states(NAME).items() if state == "AVAILABLE"}


def test_promote_and_rollback_move_every_server_and_no_request_fails(rollout, registry, start):
    servers = [start(), start(), start()]
    with traffic(*servers) as sent:
        eventually(lambda: sent.answered.get(1))
        for version, loaded in [(2, {1, 2}), (3, {2, 3})]:
            before, told = rollout.promote(version)
            assert (before, len(told.servers), told.starting) == (version - 1, 3, [])
            assert [server.added(NAME, "stable") for server in servers] == [version] * 3
            eventually(lambda loaded=loaded: all(available(server) == loaded for server in servers))
        assert rollout.rollback()[:2] == (3, 2)
        assert [server.added(NAME, "stable") for server in servers] == [2] * 3
        assert rollout.rollback()[:2] == (2, 1)
        assert [server.added(NAME, "stable") for server in servers] == [1] * 3
    assert registry.labels() == {"stable": 1}
    assert set(sent.answered) == {1, 2, 3}


def test_a_server_that_starts_later_serves_what_was_promoted(rollout, start):
    rollout.promote(2)
    server = start()
    assert server.added(NAME, "stable") == 2


def test_what_a_server_cannot_load_changes_nothing_and_is_told_by_its_name(rollout, registry, start):
    servers = [start(), start()]
    rollout.promote(2)
    with traffic(*servers) as sent:
        eventually(lambda: sent.answered.get(2))
        with pytest.raises(CannotLoad, match="model-server at 127.0.0.1:.* cannot load version 4: "):
            rollout.promote(4)
        assert [server.added(NAME, "stable") for server in servers] == [2, 2]
    assert registry.labels() == {"stable": 2}
    eventually(lambda: all(available(server) == {1, 2} for server in servers))
    with pytest.raises(CannotLoad):  # that it failed before is no reason to say so too early, or not at all
        rollout.promote(4)
    assert rollout.rollback()[:2] == (2, 1)


def test_a_server_that_missed_changes_is_brought_to_the_end_of_them_while_it_answers(rollout, registry, start, laptop):
    server = start()
    registry.promote(3)  # as if the servers had not been there
    live, revision = laptop.read()
    laptop.write(live.with_versions([]).__class__((3,), {"stable": 3}), revision)
    with traffic(server) as sent:
        eventually(lambda: sent.answered.get(1))
        rollout.sync()
        eventually(lambda: sent.answered.get(3))
    assert available(server) >= {3}


def test_versions_beyond_what_is_kept_are_removed_but_not_what_is_loaded(registry, laptop, start):
    rollout = Rollout(registry, laptop, Limits(loaded=2, keep=1))
    rollout.sync()
    start()
    assert rollout.promote(2)[1].removed == []  # 1 is the way back
    assert rollout.promote(3)[1].removed == [1]
    assert registry.versions() == [2, 3, 4]
    assert rollout.rollback()[:2] == (3, 2)
