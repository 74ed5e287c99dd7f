"""In a cluster: an API that enforces resource versions, pods that are embedded servers, faults at every call."""

import pytest

from serving.rollout.cluster import Cluster
from serving.rollout.fleet import FleetError
from serving.rollout.plan import CONFIG_FILE, read_plan
from serving.rollout.rollout import CannotLoad, Limits, Rollout, RolloutError
from tests.serving.model_server.servers import free_port
from tests.serving.rollout.kubernetes_api import NAMESPACE
from tests.serving.rollout.strict_server import StrictServer


@pytest.fixture
def pods(api, processes):
    """Two model servers that are ready."""
    servers = processes[:2]
    for number, server in enumerate(servers):
        api.add_pod(f"model-server-{number}", server.port)
    return servers


@pytest.fixture
def command(registry):
    """Runs one command: a connection of its own to the API, as the command line has it."""

    def command(name: str, *arguments: object):
        limits = Limits(loaded=2, starting_seconds=0.5, poll_seconds=1)
        # The pods see this machine's disk.
        with Cluster(NAMESPACE, registry.base.name, str(registry.base.parent)) as cluster:
            return getattr(Rollout(registry, cluster, limits), name)(*arguments)

    return command


def stable(registry, servers) -> list[float]:
    return [server.added(registry.base.name, "stable") for server in servers]


@pytest.fixture
def strict(api):
    """Two pods that are strict servers."""
    servers = [StrictServer(), StrictServer()]
    for number, server in enumerate(servers):
        api.add_pod(f"model-server-{number}", server.port)
    yield servers
    for server in servers:
        server.stop()


@pytest.mark.parametrize("kind", ["reset", "reset after", "500", "500 after", "409"])
def test_a_fault_at_any_call_leaves_stable_served_and_the_same_command_again_ends_well(
    api, strict, registry, command, kind
):
    command("sync")
    call, hit = 0, True
    while hit:
        call, hit = call + 1, False
        for name, arguments, version in [
            ("promote", [2], 2),
            ("start_canary", [3, 0.1], 2),
            ("stop_canary", ["by hand"], 2),
            ("rollback", [], 1),
        ]:
            api.fault = (call, kind)
            try:
                command(name, *arguments)
            except (FleetError, RolloutError):
                assert all(server.labels["stable"] in server.loaded for server in strict)
                command(name, *arguments)
            hit |= api.fault is None
            api.fault = None
            labels = {"stable": version} | ({"canary": 3} if name == "start_canary" else {})
            assert registry.labels() == labels
            assert read_plan(api.config_map["data"], registry.base.name).labels == labels
            assert [server.labels for server in strict] == [labels] * 2
    assert call > 5
    assert [server.faults for server in strict] == [[], []]
    assert max(server.most for server in strict) == 2
    for data in api.history:
        read_plan(data, registry.base.name)  # a label to what is not loaded raises


def test_what_cannot_be_loaded_any_more_keeps_nobody_from_leaving_it(api, strict, registry, command):
    command("promote", 2)
    late = StrictServer(broken=frozenset({2}))
    late.loaded, late.labels = {1}, {"stable": 2}  # as it started on the live configuration
    api.add_pod("model-server-late", late.port)
    command("rollback")
    assert [server.labels for server in [*strict, late]] == [{"stable": 1}] * 3
    late.stop()


def test_what_others_change_meanwhile_is_read_again_and_kept(api, pods, registry, command):
    command("sync")
    rivals = iter(range(3))

    def rival() -> None:
        if next(rivals, None) is not None:
            data = {**api.config_map["data"], "note": "theirs"}
            api.change({**api.config_map, "data": data})

    api.before_write = rival
    command("promote", 2)
    assert next(rivals, None) is None
    assert api.config_map["data"]["note"] == "theirs"
    assert stable(registry, pods) == [2, 2]


def test_a_configuration_that_changes_all_the_time_ends_the_command_and_nothing_has_moved(api, pods, registry, command):
    command("sync")
    api.before_write = lambda: api.change(api.config_map)
    with pytest.raises(RolloutError, match="try again"):
        command("promote", 2)
    assert registry.labels() == {"stable": 1}
    assert stable(registry, pods) == [1, 1]


def test_the_config_map_is_made_before_any_pod_runs_and_says_what_servers_read(api, registry, command):
    told = command("sync")
    assert (told.servers, told.starting) == ([], [])
    config = api.config_map["data"][CONFIG_FILE]
    assert f'base_path: "{registry.base}"' in config
    assert read_plan(api.config_map["data"], registry.base.name).labels == {"stable": 1}


def test_a_pod_that_cannot_load_the_version_is_named_and_all_is_put_back(api, pods, registry, command):
    command("sync")
    before = api.config_map["data"]
    with pytest.raises(CannotLoad, match=r"^pod model-server-[01] cannot load version 4: "):
        command("promote", 4)
    assert api.config_map["data"] == before
    assert registry.labels() == {"stable": 1}


def test_a_pod_that_is_starting_is_told_too_and_named_if_it_does_not_listen_yet(api, pods, registry, command):
    command("sync")
    listening = api.pods[1]
    listening["status"]["conditions"][0]["status"] = "False"
    deaf = api.add_pod("model-server-deaf", free_port())
    deaf["status"]["conditions"][0]["status"] = "False"
    for name in ("pulling", "unscheduled"):
        pod = api.add_pod(f"model-server-{name}", free_port())
        pod["status"]["conditions"][0]["status"] = "False"
        pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    del pod["spec"]["nodeName"]  # only where there is a node the configuration may be mounted already
    _, told = command("promote", 2)
    assert told.servers == ["pod model-server-0", "pod model-server-1"]
    assert told.starting == ["pod model-server-deaf", "pod model-server-pulling"]
    assert stable(registry, pods) == [2, 2]


def test_a_ready_pod_that_does_not_answer_stops_the_promotion_before_anything_moves(api, pods, registry, command):
    command("sync")
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(RolloutError, match="pod model-server-gone does not answer"):
        command("promote", 2)
    assert registry.labels() == {"stable": 1}
    assert stable(registry, pods) == [1, 1]
    api.pods.pop()
    command("promote", 2)
    assert stable(registry, pods) == [2, 2]


def test_a_ready_pod_that_does_not_answer_keeps_the_others_from_nothing_when_it_is_about_going_back(
    api, pods, registry, command
):
    command("promote", 2)
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(RolloutError, match=r"pod model-server-gone does not answer: .*; all others have moved, try"):
        command("rollback")
    assert stable(registry, pods) == [1, 1]
    api.pods.pop()
    command("rollback")
    assert registry.labels() == {"stable": 1}
    command("start_canary", 3, 0.1)
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(RolloutError, match="all others have moved"):
        command("stop_canary", "by hand")
    assert "canary" not in api.config_map["data"][CONFIG_FILE]


def test_two_who_roll_back_at_once_go_back_by_one_version(api, pods, registry, command):
    command("promote", 2)
    command("promote", 3)
    fired = []

    def rival() -> None:
        if not fired:
            fired.append(True)
            registry.rollback()

    api.before_write = rival
    command("rollback")
    assert fired
    assert registry.labels() == {"stable": 2}
    assert stable(registry, pods) == [2, 2]


def test_rollout_calls_what_its_role_allows_and_nothing_else(api, pods, registry, command):
    command("sync")
    command("promote", 2)
    command("rollback")
    base = f"/api/v1/namespaces/{NAMESPACE}"
    assert set(api.calls) == {
        f"GET {base}/configmaps/model-config",
        f"POST {base}/configmaps",
        f"PUT {base}/configmaps/model-config",
        f"GET {base}/pods",
    }
