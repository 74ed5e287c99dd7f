"""Promote and rollback on several servers, under traffic."""

import pytest

from serving.rollout.controller import RolloutController
from serving.rollout.errors import LoadError
from serving.rollout.limits import RolloutLimits
from serving.rollout.serving_config import ServingConfig
from tests.serving.model_server.servers import eventually
from tests.serving.rollout.traffic import traffic


@pytest.fixture
def servers(announce):
    return announce(3)


@pytest.fixture
def controller(registry, fleet, servers) -> RolloutController:
    """Version 1 is stable on all servers."""
    controller = RolloutController(registry, fleet, RolloutLimits(loaded_versions=2, poll_seconds=1))
    controller.sync()
    return controller


@pytest.fixture
def stable(servers, registry):
    """Return the stable version of each server, as its responses show it."""
    return lambda: [server.added(registry.base.name, "stable") for server in servers]


@pytest.fixture
def loaded(servers, registry):
    """Return whether every server has loaded these versions and no others."""

    def loaded(*versions: int) -> bool:
        states = [server.states(registry.base.name) for server in servers]
        return all({version for version, state in one.items() if state != "END"} == set(versions) for one in states)

    return loaded


def test_promote_and_rollback_update_every_server_and_no_request_fails(controller, registry, servers, stable, loaded):
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.responses.get(1))
        for version in (2, 3):
            previous, result = controller.promote(version)
            assert (previous, len(result.servers), result.starting) == (version - 1, 3, [])
            assert stable() == [version] * 3
            eventually(lambda version=version: loaded(version - 1, version))
        assert controller.rollback()[:2] == (3, 2)
        assert stable() == [2] * 3
        assert controller.rollback()[:2] == (2, 1)
        assert stable() == [1] * 3
    assert registry.labels() == {"stable": 1}
    assert set(sent.responses) == {1, 2, 3}


def test_a_version_that_a_server_cannot_load_changes_nothing_and_the_error_names_the_server(
    controller, registry, servers, stable, loaded
):
    controller.promote(2)
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.responses.get(2))
        with pytest.raises(LoadError, match=r"model-server at 127.0.0.1:.* cannot load version 4: "):
            controller.promote(4)
        assert stable() == [2] * 3
        eventually(lambda: loaded(1, 2))
    assert registry.labels() == {"stable": 2}
    with pytest.raises(LoadError):  # the error of the first attempt must not hide that of the second
        controller.promote(4)
    assert controller.rollback()[:2] == (2, 1)


def test_a_server_that_missed_changes_gets_the_latest_configuration_while_it_serves(
    controller, registry, servers, stable, fleet
):
    registry.promote(3)
    fleet.write(ServingConfig((3,), {"stable": 3}), fleet.read()[1])  # without sending it to the servers
    with traffic(registry.base.name, servers) as sent:
        eventually(lambda: sent.responses.get(1))
        controller.sync()
        assert stable() == [3] * 3


def test_promote_removes_versions_beyond_the_limit_unless_they_are_loaded(controller, registry, fleet):
    controller = RolloutController(registry, fleet, RolloutLimits(loaded_versions=2, keep_versions=1))
    assert controller.promote(2)[1].removed == []  # 1 is the rollback target
    assert controller.promote(3)[1].removed == [1]
    assert registry.versions() == [2, 3, 4]
    assert controller.rollback()[:2] == (3, 2)
