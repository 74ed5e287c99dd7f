"""Versions of the model server: policies, labels, polling, and loading before unloading."""

import random
import shutil
import threading
from concurrent import futures

import grpc
import psutil
import pytest

from tests.serving.model_server.servers import embedded_server_only, eventually, grpc_error
from tests.serving.model_server.toys import LargeAdder, add_warmup, push

ALL = "all {}"


@pytest.fixture
def name(server, request):
    """A model name that only this test uses."""
    yield request.node.name
    if request.node.name in server._configs:
        server.remove(request.node.name)


def test_only_the_newest_version_is_loaded_by_default(server, name, base, adders):
    push(adders / "2", base, 2)
    server.configure(name, base)
    assert server.added(name) == 2
    assert server.available(name) == {2}


def test_policy_latest_loads_the_given_number_of_versions(server, name, base, adders):
    for version in (2, 3):
        push(adders / str(version), base, version)
    server.configure(name, base, "latest { num_versions: 2 }")
    eventually(lambda: server.available(name) == {2, 3})


def test_policy_specific_loads_the_listed_versions(server, name, base, adders):
    for version in (2, 3):
        push(adders / str(version), base, version)
    server.configure(name, base, "specific { versions: 1 versions: 2 }")
    eventually(lambda: server.available(name) == {1, 2})
    assert (server.added(name), server.added(name, 1)) == (2, 1)


def test_policy_all_loads_every_version(server, name, base, adders):
    for version in (2, 30):
        push(adders / str(version % 28), base, version)
    server.configure(name, base, ALL)
    eventually(lambda: server.available(name) == {1, 2, 30})
    assert server.added(name) == 2  # the output of version 30: versions are compared as numbers, not text


def test_server_waits_for_a_missing_model_directory(server, name, tmp_path, adders):
    later = tmp_path / "later"
    with futures.ThreadPoolExecutor() as threads:
        configured = threads.submit(server.configure, name, later)
        eventually(lambda: f"Could not find base path {later}" in server.log.read_text())
        push(adders / "3", later, 3)
        configured.result()
    assert server.added(name) == 3


@embedded_server_only
def test_unloading_a_version_frees_its_memory(server, name, tmp_path):
    model, base, megabytes = tmp_path / "model", tmp_path / "base", 8
    LargeAdder(megabytes).save(model)
    resident = []
    for version in range(1, 8):
        push(model, base, version)
        server.configure(name, base)
        eventually(lambda version=version: server.states(name).get(version) == "AVAILABLE")
        eventually(lambda version=version: server.states(name).get(version - 1, "END") == "END")
        resident.append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
        server.added(name)  # TensorFlow prepares the graph for the first request
    # A version takes about four times the size of its constant.
    assert resident[-1] - resident[0] < 12 * megabytes, resident


def test_policy_changes_without_a_restart(server, name, base, adders):
    push(adders / "2", base, 2)
    server.configure(name, base)
    server.configure(name, base, "specific { versions: 1 }")
    eventually(lambda: server.states(name) == {1: "AVAILABLE", 2: "END"})


def test_unloaded_version_can_be_loaded_again(server, name, base, adders):
    push(adders / "2", base, 2)
    for version in (1, 2, 1):
        server.configure(name, base, f"specific {{ versions: {version} }}")
        eventually(lambda version=version: server.available(name) == {version})
        assert server.added(name) == version


def test_pushed_version_replaces_the_old_one(server, name, base, adders):
    server.configure(name, base)
    push(adders / "2", base, 2)
    eventually(lambda: server.states(name) == {1: "END", 2: "AVAILABLE"})
    assert server.added(name) == 2


def test_removed_version_is_unloaded(server, name, base, adders):
    push(adders / "2", base, 2)
    server.configure(name, base)
    shutil.rmtree(base / "2")
    eventually(lambda: server.available(name) == {1})
    assert server.added(name) == 1


def test_model_removed_from_the_configuration_is_not_found(server, name, base):
    server.configure(name, base)
    server.remove(name)
    eventually(lambda: not server.available(name))
    with grpc_error(grpc.StatusCode.NOT_FOUND):
        server.added(name)


def test_new_version_is_loaded_before_the_old_one_is_unloaded(server, name, base, adders):
    server.configure(name, base)
    seen: list[set[int]] = []
    push(adders / "2", base, 2)
    while 2 not in (seen[-1] if seen else set()):
        seen.append(server.available(name))
        assert seen[-1], "no version was available"
    eventually(lambda: server.available(name) == {2})


def test_version_in_use_is_unloaded_after_its_request_ends(server, name, toys, tmp_path, adders):
    push(toys / "7", tmp_path / "model", 7)
    server.configure(name, tmp_path / "model")
    slow = server.predict(name, _signature="wait", file=str(tmp_path / "continue"))
    assert server.states(name) == {7: "AVAILABLE"}  # ensures that the slow request has arrived
    push(adders / "8", tmp_path / "model", 8)
    eventually(lambda: server.states(name).get(8) == "AVAILABLE")
    eventually(lambda: server.states(name)[7] == "UNLOADING")
    (tmp_path / "continue").touch()
    assert slow.result().model_spec.version.value == 7
    eventually(lambda: server.states(name)[7] == "END")


def test_incomplete_copies_of_versions_are_ignored(server, name, base, adders):
    for folder in (".2.staged", "2.tmp", "v2", "-2", "２"):
        shutil.copytree(adders / "2", base / folder)
    server.configure(name, base, ALL)
    push(adders / "3", base, 3)
    eventually(lambda: server.available(name) == {1, 3})
    assert server.states(name).keys() == {1, 3}


@pytest.mark.parametrize("damage", ["no graph", "broken graph", "no weights", "broken weights", "wrong warmup"])
def test_version_that_does_not_load_reports_its_error_and_the_old_one_stays_available(server, base, adders, damage):
    name = damage.replace(" ", "_")
    server.configure(name, base)
    broken = base.parent / "broken"
    shutil.copytree(adders / "2", broken)
    weights = next((broken / "variables").glob("variables.data*"))
    match damage:
        case "no graph":
            (broken / "saved_model.pb").unlink()
        case "broken graph":
            (broken / "saved_model.pb").write_bytes(b"\xff" * 100)
        case "no weights":
            weights.unlink()
        case "broken weights":
            weights.write_bytes(b"")
        case "wrong warmup":
            add_warmup(broken, "text instead of a number")
    push(broken, base, 2)
    eventually(lambda: server.states(name).get(2) == "END")
    _, code, message = server.status(name)[2]
    assert code
    assert message
    assert server.states(name)[1] == "AVAILABLE"
    assert server.added(name) == 1
    push(adders / "3", base, 3)
    eventually(lambda: server.available(name) == {3})
    server.remove(name)


def test_new_model_that_does_not_load_fails_the_request_and_others_stay_available(server, name, tmp_path):
    (tmp_path / "empty" / "1").mkdir(parents=True)
    with grpc_error(grpc.StatusCode.UNKNOWN, "did not become available"):
        server.configure(name, tmp_path / "empty")
    assert server.added("toys") == 7
    server.push_configs(server._configs)


def test_warmup_requests_run_before_a_version_becomes_available(server, name, base, adders):
    warm = base.parent / "warm"
    shutil.copytree(adders / "2", warm)
    add_warmup(warm, 1.0, 2.0)
    push(warm, base, 2)
    server.configure(name, base)
    line = f':tensorflow:serving:model_warmup_latency_count{{model_path="{base / "2"}",status="OK"}}'
    assert server.metric(line) == 1


def test_label_selects_its_version(server, name, base, adders):
    push(adders / "2", base, 2)
    server.configure(name, base, ALL)
    eventually(lambda: server.available(name) == {1, 2})
    server.configure(name, base, ALL, {"stable": 1, "canary": 2})
    assert (server.added(name, "stable"), server.added(name, "canary")) == (1, 2)
    code, document = server.rest_predict(f"{name}/labels/stable", instances=[0.0])
    assert (code, document["predictions"][0]["version"]) == (200, 1.0)
    code, document = server.rest("GET", f"/v1/models/{name}/labels/stable/metadata")
    assert (code, document["model_spec"]["version"]) == (200, "1")


def test_label_does_not_move_to_an_unavailable_version(server, name, base, adders):
    server.configure(name, base)
    server.configure(name, base, labels={"stable": 1})
    expected = f"Request to assign label stable to version 2 of model {name}, which is not currently available"
    with grpc_error(grpc.StatusCode.FAILED_PRECONDITION, expected):
        server.configure(name, base, labels={"stable": 2})
    assert server.added(name, "stable") == 1


def test_configuration_with_a_label_on_an_unavailable_version_loads_nothing(server, name, base, adders):
    server.configure(name, base, "specific { versions: 1 }")
    server.configure(name, base, "specific { versions: 1 }", {"stable": 1})
    push(adders / "2", base, 2)
    both = "specific { versions: 1 versions: 2 }"
    with grpc_error(grpc.StatusCode.FAILED_PRECONDITION, "Request to assign label stable to version 2"):
        server.configure(name, base, both, {"stable": 2})
    assert server.added(name, "stable") == 1
    assert server.available(name) == {1}
    server.configure(name, base, both, {"stable": 1})
    eventually(lambda: server.available(name) == {1, 2})


def test_label_removed_from_the_configuration_is_unknown(server, name, base):
    server.configure(name, base)
    server.configure(name, base, labels={"stable": 1})
    server.configure(name, base)
    with grpc_error(grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: stable"):
        server.added(name, "stable")


def test_label_moves_in_two_steps_without_failed_requests(server, name, base, adders):
    push(adders / "2", base, 2)
    server.configure(name, base, "specific { versions: 1 }")
    server.configure(name, base, "specific { versions: 1 }", {"stable": 1})
    moved, outputs = threading.Event(), []

    def client():
        while not moved.is_set():
            outputs.append(server.added(name, "stable"))
        return server.added(name, "stable")

    with futures.ThreadPoolExecutor(4) as clients:
        last = [clients.submit(client) for _ in range(4)]
        eventually(lambda: outputs)
        server.configure(name, base, "specific { versions: 1 versions: 2 }", {"stable": 1})
        eventually(lambda: server.available(name) == {1, 2})
        server.configure(name, base, "specific { versions: 1 versions: 2 }", {"stable": 2})
        moved.set()
    assert [future.result() for future in last] == [2.0] * 4
    assert set(outputs) <= {1.0, 2.0}


def test_sixteen_clients_get_no_error_and_no_wrong_output_while_versions_change(server, name, base, adders):
    server.configure(name, base)
    finished = threading.Event()

    def client(number: int) -> int:
        """Return the number of responses."""
        newest, count, numbers = 0, 0, random.Random(number)
        while not finished.is_set():
            x = float(numbers.randrange(1000))
            if number % 2:
                code, document = server.rest_predict(name, instances=[x])
                assert code == 200, document
                y, version = document["predictions"][0]["y"], document["predictions"][0]["version"]
            else:
                response = server.predict(name, x=[x]).result()
                y, version = response.outputs["y"].float_val[0], response.model_spec.version.value
            assert y == x + version
            assert version >= newest, "an old version responded after a newer one"
            newest, count = version, count + 1
        return count

    with futures.ThreadPoolExecutor(16) as clients:
        running = [clients.submit(client, number) for number in range(16)]
        try:
            for version in range(2, 11):
                push(adders / str(version), base, version)
                eventually(lambda version=version: server.states(name).get(version) == "AVAILABLE")
        finally:
            finished.set()
    assert all(future.result() for future in running)
    eventually(lambda: server.available(name) == {10})
