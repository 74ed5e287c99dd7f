"""Rollout on a fake Kubernetes API that enforces resource versions, with fake or real model servers as pods."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import yaml

from serving.labels import CANARY
from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.registry import RegistryError
from serving.rollout import kubernetes_fleet
from serving.rollout.controller import RolloutController
from serving.rollout.errors import CanaryStopped, LoadError, RolloutError
from serving.rollout.fleet import FleetError, Server
from serving.rollout.golden_requests import GoldenRequest, golden_requests_document
from serving.rollout.kubernetes_fleet import KubernetesFleet
from serving.rollout.limits import RolloutLimits
from serving.rollout.serving_config import CONFIG_FILE, make_serving_config, read_serving_config
from tests.pipeline import flaky_server
from tests.serving.classifier import BREEDS
from tests.serving.gateway.gateways import PHOTOS
from tests.serving.model_server.servers import DEADLINE, eventually, free_port
from tests.serving.rollout.kubernetes_api import NAMESPACE
from tests.serving.rollout.strict_server import StrictServer


@pytest.fixture
def pods(api, model_servers):
    """Two ready model servers."""
    servers = model_servers[:2]
    for number, server in enumerate(servers):
        api.add_pod(f"model-server-{number}", server.port)
    return servers


@pytest.fixture
def command(registry):
    """Call a method of RolloutController with a new connection to the API, as each command does."""

    def command(name: str, *arguments: object):
        limits = RolloutLimits(loaded_versions=2, load_seconds=30, starting_seconds=0.5, poll_seconds=1)
        # The pods have this machine's file system.
        with KubernetesFleet(NAMESPACE, registry.base.name, str(registry.base.parent)) as fleet:
            return getattr(RolloutController(registry, fleet, limits), name)(*arguments)

    return command


def stable(registry, servers) -> list[float]:
    return [server.added(registry.base.name, "stable") for server in servers]


@pytest.fixture
def strict_servers(api):
    """Two pods that are strict servers."""
    servers = [StrictServer(), StrictServer()]
    for number, server in enumerate(servers):
        api.add_pod(f"model-server-{number}", server.port)
    yield servers
    for server in servers:
        server.stop()


@pytest.mark.parametrize("kind", ["reset", "reset after", "500", "500 after", "409"])
def test_after_a_fault_at_any_call_stable_is_served_and_the_same_command_succeeds(
    api, strict_servers, registry, command, kind
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
                assert all(server.labels["stable"] in server.loaded for server in strict_servers)
                command(name, *arguments)
            hit |= api.fault is None
            api.fault = None
            labels = {"stable": version} | ({"canary": 3} if name == "start_canary" else {})
            assert registry.labels() == labels
            assert read_serving_config(api.config_map["data"], registry.base.name).labels == labels
            assert [server.labels for server in strict_servers] == [labels] * 2
    assert call > 5
    assert [server.faults for server in strict_servers] == [[], []]
    assert max(server.max_loaded for server in strict_servers) == 2
    for data in api.history:
        read_serving_config(data, registry.base.name)  # raises if a label points to a version that is not loaded


def test_one_of_two_concurrent_promotions_succeeds_and_the_other_fails_immediately_with_the_reason(
    api, strict_servers, registry, command
):
    command("promote", 2)
    for server in strict_servers:
        server.slow.add(3)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(command, "promote", 3)
        eventually(lambda: all(3 in server.requested for server in strict_servers))
        previous, result = command("promote", 4)
        assert (previous, len(result.servers)) == (2, 2)
        with pytest.raises(
            RolloutError,
            match=r"^namespace shop: another rollout is running and has unloaded version 3; no label was moved",
        ):
            first.result(DEADLINE)
    assert registry.labels() == {"stable": 4}
    assert [server.labels for server in strict_servers] == [{"stable": 4}] * 2
    for server in strict_servers:
        server.slow.clear()
    assert command("promote", 3)[0] == 4
    assert [server.faults for server in strict_servers] == [[], []]


def test_a_promotion_ends_when_the_live_configuration_changes_before_any_server_does(
    api, strict_servers, registry, command
):
    command("promote", 2)
    for server in strict_servers:
        server.slow.add(3)
    with ThreadPoolExecutor(1) as thread:
        promotion = thread.submit(command, "promote", 3)
        eventually(lambda: all(3 in server.requested for server in strict_servers))
        data = dict(api.config_map["data"])
        data[CONFIG_FILE] = data[CONFIG_FILE].replace("versions: 3", "versions: 1")
        api.change({**api.config_map, "data": data})
        with pytest.raises(RolloutError, match="another rollout is running and has unloaded version 3"):
            promotion.result(20)  # versions may take 30 s to load
    assert registry.labels() == {"stable": 2}
    assert [server.requested for server in strict_servers] == [{1, 2}] * 2


def test_an_outdated_configuration_that_arrives_late_does_not_stay_on_the_server(
    api, strict_servers, registry, command, monkeypatch
):
    command("promote", 2)
    reaching, rolled_back = threading.Event(), threading.Event()
    reach = KubernetesFleet.reachable_address

    def reach_after_rollback(fleet: KubernetesFleet, server: Server) -> str:
        if server.name == "pod model-server-1" and not reaching.is_set():
            reaching.set()
            assert rolled_back.wait(DEADLINE)
        return reach(fleet, server)

    monkeypatch.setattr(KubernetesFleet, "reachable_address", reach_after_rollback)
    with ThreadPoolExecutor(1) as thread:
        promotion = thread.submit(command, "promote", 3)
        assert reaching.wait(DEADLINE)
        command("rollback")
        rolled_back.set()
        with pytest.raises(RolloutError, match="another rollout is running"):
            promotion.result(DEADLINE)
    assert registry.labels() == {"stable": 1}
    assert [server.labels for server in strict_servers] == [{"stable": 1}] * 2


def test_a_version_that_another_process_promotes_does_not_become_canary(api, strict_servers, registry, command):
    promote = registry.promote

    def promote_concurrently(version: int, label: str = "stable") -> int | None:
        if label == CANARY:
            promote(version)
        return promote(version, label)

    registry.promote = promote_concurrently
    with pytest.raises(RolloutError, match=r"^version 2 is already stable$"):
        command("start_canary", 2, 0.1)
    assert (registry.labels(), registry.stop_reason(2)) == ({"stable": 2}, "")
    assert [server.labels for server in strict_servers] == [{"stable": 2}] * 2


def test_a_rollback_reloads_its_version_after_a_promotion_has_unloaded_it(api, strict_servers, registry, command):
    command("promote", 2)
    for server in strict_servers:
        server.slow.add(1)
        server.loaded.discard(1)
    with ThreadPoolExecutor(1) as thread:
        rollback = thread.submit(command, "rollback")
        # The rollback has read the servers' states and waits for version 1.
        eventually(lambda: api.calls[-1].endswith("configmaps/model-config") and api.calls[-2] == api.calls[-1])
        data = dict(api.config_map["data"])
        data[CONFIG_FILE] = data[CONFIG_FILE].replace("versions: 1", "versions: 3")
        api.change({**api.config_map, "data": data})
        for server in strict_servers:
            server.slow.clear()
            server.requested, server.loaded = {2, 3}, {2, 3}
        rollback.result(DEADLINE)
    assert registry.labels() == {"stable": 1}
    assert [server.labels for server in strict_servers] == [{"stable": 1}] * 2


def test_a_promotion_reloads_a_version_that_a_late_configuration_has_unloaded(api, strict_servers, registry, command):
    command("promote", 2)
    strict_servers[0].slow.add(3)
    with ThreadPoolExecutor(1) as thread:
        promotion = thread.submit(command, "promote", 3)
        eventually(lambda: 3 in strict_servers[0].requested)
        strict_servers[0].requested = {1, 2}
        strict_servers[0].slow.clear()
        promotion.result(DEADLINE)
    assert [server.labels for server in strict_servers] == [{"stable": 3}] * 2


def test_a_command_fails_if_another_process_moves_its_label(api, strict_servers, registry, command):
    command("promote", 2)

    def promote() -> None:
        if registry.labels() == {"stable": 3}:
            registry.promote(1)

    api.before_write = promote
    with pytest.raises(RolloutError, match="version 3 is no longer stable: version 1 is stable now"):
        command("promote", 3)

    def stop() -> None:
        registry.unlabel(CANARY, "version 1 was promoted")

    api.before_write = stop
    with pytest.raises(RolloutError, match="version 3 is no longer canary: version 1 was promoted"):
        command("start_canary", 3, 0.1)


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNAVAILABLE", "INTERNAL", "INVALID_ARGUMENT"])
def test_a_server_that_does_not_respond_to_golden_requests_does_not_stop_the_canary(
    api, strict_servers, registry, command, code
):
    requests = [GoldenRequest(PHOTOS[0], BREEDS[0], 0.5)]
    (registry.path(3) / GOLDEN_REQUESTS_FILE).write_text(json.dumps(golden_requests_document(requests)))
    command("sync")
    for server in strict_servers:
        server.predict_code = grpc.StatusCode[code]
    expected = r"^pod model-server-0 does not respond to a golden request for version 3: .*; try again$"
    with pytest.raises(RolloutError, match=expected) as error:
        command("start_canary", 3, 0.1)
    assert not isinstance(error.value, CanaryStopped)
    assert (registry.labels(), registry.stop_reason(3)) == ({"stable": 1}, "")
    registry.promote(3, CANARY)
    with pytest.raises(RolloutError, match=expected):
        command("check_canary", 0)
    assert (registry.labels(), registry.stop_reason(3)) == ({"stable": 1, CANARY: 3}, "")


def test_unreadable_golden_requests_do_not_stop_the_canary(api, strict_servers, registry, command):
    (registry.path(3) / GOLDEN_REQUESTS_FILE).write_text("[")
    with pytest.raises(RegistryError, match=r"golden\.json: unreadable or damaged"):
        command("start_canary", 3, 0.1)
    assert (registry.labels(), registry.stop_reason(3)) == ({"stable": 1}, "")


@pytest.mark.parametrize("failure", ["forbidden", "not running", "dead node", "lost"])
def test_a_pod_that_kubectl_cannot_reach_is_reported_and_does_not_block_the_rollback_of_others(
    api, strict_servers, registry, command, tmp_path, monkeypatch, failure
):
    command("promote", 2)
    monkeypatch.setattr(kubernetes_fleet, "_PORT_FORWARD_SECONDS", 3)
    api.add_pod("model-server-away", free_port())
    (tmp_path / "bin" / "model-server-away").write_text(failure)
    message = {
        "forbidden": "kubectl port-forward: Error from server .Forbidden.: .* cannot get resource",
        "not running": "kubectl port-forward: error: unable to forward port because pod is not running",
        "dead node": "kubectl port-forward did not reach the pod within 3 s",
        "lost": "",  # gRPC reports the lost connection
    }[failure]
    expected = rf"^pod model-server-away does not respond: {message}.*; "
    with pytest.raises(RolloutError, match=f"{expected}the rollout stopped before the next step"):
        command("promote", 3)
    assert registry.labels() == {"stable": 2}
    with pytest.raises(RolloutError, match=f"{expected}all other servers were updated"):
        command("rollback")
    assert [server.labels for server in strict_servers] == [{"stable": 1}] * 2
    api.pods.pop()
    command("rollback")
    assert registry.labels() == {"stable": 1}


def test_without_kubectl_the_error_names_kubectl_and_no_pod(api, strict_servers, command, monkeypatch, tmp_path):
    (tmp_path / "bin" / "kubectl").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(FleetError, match=r"^kubectl is not installed"):
        command("sync")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("401", "not signed in: fake error 401; sign in again"),
        ("403", "not allowed: fake error 403; docs/rollout.md has the required Role"),
        ("500", "Kubernetes returned 500: fake error 500; try again"),
    ],
)
def test_an_error_of_kubernetes_is_shown_with_its_message_and_a_remedy(api, command, kind, message):
    api.fault = (1, kind)
    with pytest.raises(FleetError) as error:
        command("sync")
    assert str(error.value) == f"namespace {NAMESPACE}: {message}"


def test_a_server_that_cannot_load_the_current_version_can_roll_back(api, strict_servers, registry, command):
    command("promote", 2)
    late = StrictServer(broken=frozenset({2}))
    late.loaded, late.labels = {1}, {"stable": 2}  # a new pod starts with the live configuration
    api.add_pod("model-server-late", late.port)
    command("rollback")
    assert [server.labels for server in [*strict_servers, late]] == [{"stable": 1}] * 3
    late.stop()


def test_concurrent_changes_to_the_config_map_are_read_again_and_kept(api, pods, registry, command):
    command("sync")
    remaining_writes = iter(range(3))

    def concurrent_write() -> None:
        if next(remaining_writes, None) is not None:
            data = {**api.config_map["data"], "note": "kept"}
            api.change({**api.config_map, "data": data})

    api.before_write = concurrent_write
    command("promote", 2)
    assert next(remaining_writes, None) is None
    assert api.config_map["data"]["note"] == "kept"
    assert stable(registry, pods) == [2, 2]


def test_a_promotion_fails_and_moves_no_label_if_the_configuration_keeps_changing(api, pods, registry, command):
    command("sync")
    api.before_write = lambda: api.change(api.config_map)
    with pytest.raises(RolloutError, match="try again"):
        command("promote", 2)
    assert registry.labels() == {"stable": 1}
    assert stable(registry, pods) == [1, 1]


def test_the_config_map_is_created_before_any_pod_runs(api, registry, command):
    result = command("sync")
    assert (result.servers, result.starting) == ([], [])
    config = api.config_map["data"][CONFIG_FILE]
    assert f'base_path: "{registry.base}"' in config
    assert read_serving_config(api.config_map["data"], registry.base.name).labels == {"stable": 1}


def test_a_pod_that_cannot_load_the_version_is_reported_and_the_configuration_is_restored(api, pods, registry, command):
    command("sync")
    before = api.config_map["data"]
    with pytest.raises(LoadError, match=r"^pod model-server-[01] cannot load version 4: "):
        command("promote", 4)
    assert api.config_map["data"] == before
    assert registry.labels() == {"stable": 1}


def test_a_starting_pod_is_updated_or_reported_if_it_does_not_listen_yet(api, pods, registry, command):
    command("sync")
    listening = api.pods[1]
    listening["status"]["conditions"][0]["status"] = "False"
    closed = api.add_pod("model-server-closed", free_port())
    closed["status"]["conditions"][0]["status"] = "False"
    for name in ("pulling", "unscheduled"):
        pod = api.add_pod(f"model-server-{name}", free_port())
        pod["status"]["conditions"][0]["status"] = "False"
        pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    del pod["spec"]["nodeName"]  # without a node, the pod cannot have mounted the configuration yet
    _, result = command("promote", 2)
    assert result.servers == ["pod model-server-0", "pod model-server-1"]
    assert result.starting == ["pod model-server-closed", "pod model-server-pulling"]
    assert stable(registry, pods) == [2, 2]


def test_a_ready_pod_that_does_not_respond_stops_a_promotion_before_anything_moves(api, pods, registry, command):
    command("sync")
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(RolloutError, match="pod model-server-gone does not respond"):
        command("promote", 2)
    assert registry.labels() == {"stable": 1}
    assert stable(registry, pods) == [1, 1]
    api.pods.pop()
    command("promote", 2)
    assert stable(registry, pods) == [2, 2]


def test_a_ready_pod_that_does_not_respond_blocks_neither_rollback_nor_stopping_a_canary(api, pods, registry, command):
    command("promote", 2)
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(
        RolloutError, match=r"pod model-server-gone does not respond: .*; all other servers were updated; try"
    ):
        command("rollback")
    assert stable(registry, pods) == [1, 1]
    api.pods.pop()
    command("rollback")
    assert registry.labels() == {"stable": 1}
    command("start_canary", 3, 0.1)
    api.add_pod("model-server-gone", free_port())
    with pytest.raises(RolloutError, match="all other servers were updated"):
        command("stop_canary", "by hand")
    assert "canary" not in api.config_map["data"][CONFIG_FILE]


@pytest.mark.parametrize("code", ["INTERNAL", "UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "CANCELLED"])
def test_a_pod_that_responds_with_an_error_does_not_block_the_rollback_of_others(
    api, strict_servers, registry, command, code
):
    command("promote", 2)
    strict_servers[1].status_code = grpc.StatusCode[code]
    expected = (
        rf"^pod model-server-1 does not respond: {code}: out of order; all other servers were updated; try again$"
    )
    with pytest.raises(RolloutError, match=expected):
        command("rollback")
    assert strict_servers[0].labels == {"stable": 1}
    strict_servers[1].status_code = None
    command("rollback")
    assert [server.labels for server in strict_servers] == [{"stable": 1}] * 2
    assert registry.labels() == {"stable": 1}


def test_two_concurrent_rollbacks_go_back_only_one_version(api, pods, registry, command):
    command("promote", 2)
    command("promote", 3)
    fired = []

    def concurrent_write() -> None:
        if not fired:
            fired.append(True)
            registry.rollback()

    api.before_write = concurrent_write
    command("rollback")
    assert fired
    assert registry.labels() == {"stable": 2}
    assert stable(registry, pods) == [2, 2]


def test_rollout_makes_only_the_calls_that_its_role_allows(api, pods, registry, command):
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


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    """Return a function that writes kubectl's configuration for a cluster at an address."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {}}],
    }

    def write(address: str) -> None:
        clusters = [{"name": "test", "cluster": {"server": address}}]
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config | {"clusters": clusters}))

    return write


CONFIG_MAP = "/api/v1/namespaces/cats/configmaps/model-config"


@pytest.mark.parametrize("body", [b'{"metadata": {"resourceVe', b"<html>sign in", b"[]", b'{"a": "\xff"}', b""])
def test_a_truncated_or_foreign_response_is_an_error(kubeconfig, body):
    with flaky_server.serving() as server:
        kubeconfig(server.address)
        server.files[CONFIG_MAP] = body
        with (
            KubernetesFleet("cats", "catbreeds", "/models") as fleet,
            pytest.raises(FleetError, match="Kubernetes returned "),
        ):
            fleet.read()


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (
            403,
            b'{"message": "User \\"system:anonymous\\" cannot get"}',
            "not signed in: User .* cannot get; sign in again",
        ),
        (502, b"<html><title>502</title>\n</html>", "Kubernetes returned 502: Bad Gateway; try again"),
        (503, b'{"error": {"code": 503}}', "Kubernetes returned 503: Service Unavailable; try again"),
        (500, b"no endpoints\nat stack", "Kubernetes returned 500: no endpoints; try again"),
        (500, b'{"message": "etcd is away\\nat stack"}', "Kubernetes returned 500: etcd is away; try again"),
        (500, b"", "Kubernetes returned 500: Internal Server Error; try again"),
    ],
)
def test_an_error_response_is_shown_in_one_line_even_from_a_proxy(kubeconfig, code, body, message):
    with flaky_server.serving() as server:
        kubeconfig(server.address)
        server.responses[CONFIG_MAP] = [flaky_server.status(code, body)]
        with (
            KubernetesFleet("cats", "catbreeds", "/models") as fleet,
            pytest.raises(FleetError, match=f"^namespace cats: {message}$"),
        ):
            fleet.read()


def test_the_error_names_a_missing_namespace(kubeconfig):
    with flaky_server.serving() as server:
        kubeconfig(server.address)
        missing = flaky_server.status(404, b'{"message": "namespaces \\"cats\\" not found"}')
        server.responses[CONFIG_MAP.removesuffix("/model-config")] = [missing]
        expected = r'^namespace cats: namespaces "cats" not found; check --namespace and --context$'
        with KubernetesFleet("cats", "catbreeds", "/models") as fleet, pytest.raises(FleetError, match=expected):
            fleet.write(make_serving_config({"stable": 1}, [], 2, 0.0), None)


@pytest.mark.parametrize("content", ["a: [1", "hello", "[]", "clusters: 7\n", "\0"])
def test_the_error_names_a_damaged_kubectl_configuration(tmp_path, monkeypatch, content):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    (tmp_path / "kubeconfig").write_text(content)
    with pytest.raises(FleetError, match=f"^no Kubernetes cluster is configured: .*{tmp_path}"):
        KubernetesFleet("cats", "catbreeds", "/models")


def test_calls_to_kubernetes_use_the_proxy_of_the_environment_and_errors_name_it(kubeconfig, monkeypatch):
    kubeconfig("http://kubernetes.invalid")
    for name in ("http_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with flaky_server.serving() as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.address)
        with KubernetesFleet("cats", "catbreeds", "/models") as fleet:
            assert fleet.read() == (None, None)
        assert proxy.requests == [(CONFIG_MAP, None)]
        proxy.responses[CONFIG_MAP] = [flaky_server.status(502)]
        with (
            KubernetesFleet("cats", "catbreeds", "/models") as fleet,
            pytest.raises(FleetError, match=rf"502 .*{proxy.address}"),
        ):
            fleet.read()
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(FleetError, match=r"ALL_PROXY=socks5:.* this proxy cannot be used"):
        KubernetesFleet("cats", "catbreeds", "/models")
