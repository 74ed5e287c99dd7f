"""Rollout as in a pod of the cluster, with real permissions, resource versions and pods, under traffic."""

import re
import signal

import pytest
from kubernetes import client
from kubernetes.client import ApiException

from serving.rollout.fleet import Conflict
from serving.rollout.kubernetes_fleet import KubernetesFleet
from serving.rollout.serving_config import read_serving_config
from tests.cluster.clusters import MODEL, get
from tests.serving.model_server.servers import DEADLINE, eventually


@pytest.fixture
def served(served):
    served.reset_to(1)
    return served


def test_promote_and_rollback_cause_no_failed_requests(served):
    with served.traffic() as traffic:
        assert served.run("promote", 2) == "version 2 is stable (was version 1)\nloaded on 2 servers\n"
        assert traffic.receives_only({2})
        assert served.labels() == [{"stable": 2}] * 3
        assert served.run("rollback") == "version 1 is stable again (was version 2)\nloaded on 2 servers\n"
        assert traffic.receives_only({1})
    assert served.labels() == [{"stable": 1}] * 3
    assert {*traffic.versions} == {1, 2}


def test_a_canary_gets_its_share_then_becomes_stable_and_no_request_fails(served):
    with served.traffic() as traffic:
        output = served.run("promote", 2, "--canary", "--share", 0.5)
        assert "version 2 is the canary and gets 50% of the gateways' requests\n1 golden request returned" in output
        assert served.labels() == [{"stable": 1, "canary": 2}] * 3
        eventually(lambda: traffic.receives_only({1, 2}))
        output = served.run("canary", "--promote", "--timeout", DEADLINE / 2)
        assert "version 2 is stable (was version 1)\nloaded on 2 servers\n" in output
        assert traffic.receives_only({2})
    assert served.labels() == [{"stable": 2}] * 3


def test_a_stopped_canary_gets_no_requests_and_no_request_fails(served):
    with served.traffic() as traffic:
        served.run("promote", 2, "--canary", "--share", 0.5)
        eventually(lambda: traffic.receives_only({1, 2}))
        assert served.run("canary", "--stop") == "canary stopped: version 2\nupdated 2 servers\n"
        assert traffic.receives_only({1})
    assert served.labels() == [{"stable": 1}] * 3


def test_one_of_two_concurrent_promotions_in_a_cluster_succeeds_and_the_other_fails_immediately(served):
    with served.traffic():
        first = served.start("promote", 3)  # this version is not in the folder of the pods yet
        eventually(lambda: 3 in read_serving_config(served.live()["data"], MODEL).versions)
        second_output = served.run("promote", 2)
        output, errors = first.communicate(timeout=DEADLINE)  # a fifth of the time limit for loading
    assert second_output == "version 2 is stable (was version 1)\nloaded on 2 servers\n"
    assert (first.returncode, output) == (1, "")
    assert f"namespace {served.namespace}: another rollout is running and has unloaded version 3;" in errors
    assert served.labels() == [{"stable": 2}] * 3
    served.publish(3)
    assert "version 3 is stable (was version 2)\n" in served.run("promote", 3)


def test_writing_a_configuration_that_another_process_has_changed_is_a_conflict(served, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with KubernetesFleet(served.namespace, MODEL, str(served.models)) as fleet:
        config, revision = fleet.read()
        served.run("promote", 2)
        with pytest.raises(Conflict, match="another process has changed the ConfigMap model-config"):
            fleet.write(config, revision)
    assert read_serving_config(served.live()["data"], MODEL).labels == {"stable": 2}


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_killed_command_causes_no_failed_requests_and_completes_when_it_is_rerun(served, writes):
    revisions = [served.live()["metadata"]["resourceVersion"]]

    def has_written() -> bool:
        revision = served.live()["metadata"]["resourceVersion"]
        if revision != revisions[-1]:
            revisions.append(revision)
        return len(revisions) > writes or command.poll() is not None

    with served.traffic() as traffic:
        command = served.start("promote", 2)
        eventually(has_written)
        if command.poll() is None:
            command.send_signal(signal.SIGKILL)
        command.communicate(timeout=DEADLINE)
        assert all(labels["stable"] in (1, 2) for labels in served.labels())
        # The command may have been killed after all its writes.
        assert re.match("version 2 (is|was already) stable", served.run("promote", 2))
        assert traffic.receives_only({2})
    assert served.labels() == [{"stable": 2}] * 3
    assert read_serving_config(served.live()["data"], MODEL).labels == {"stable": 2}


def test_a_command_killed_while_a_version_loads_completes_when_it_is_rerun(served):
    with served.traffic() as traffic:
        command = served.start("promote", 4)  # this version is not in the folder of the pods yet
        eventually(lambda: 4 in read_serving_config(served.live()["data"], MODEL).versions)
        command.kill()
        assert command.wait(DEADLINE) == -signal.SIGKILL
        assert served.labels() == [{"stable": 1}] * 3
        served.publish(4)
        assert "version 4 is stable (was version 1)\n" in served.run("promote", 4)
        assert traffic.receives_only({4})
    assert served.labels() == [{"stable": 4}] * 3


def test_evictions_remove_one_model_server_at_a_time_without_failed_requests(served):
    core = client.CoreV1Api(served.kubelet.api)
    name = ("poddisruptionbudget/model-server", "--namespace", served.namespace)
    eventually(lambda: get(*name)["status"]["disruptionsAllowed"] == 1)
    first, second = served.kubelet.ready("model-server")

    def evict(pod) -> None:
        body = {"metadata": {"name": pod.name, "namespace": served.namespace}}
        core.create_namespaced_pod_eviction(pod.name, served.namespace, body)

    with served.traffic():
        evict(first)
        with pytest.raises(ApiException) as rejection:
            evict(second)
        assert rejection.value.status == 429
        eventually(lambda: first.name not in served.kubelet.pods and len(served.kubelet.ready("model-server")) == 2)
        # The new pod has read the live configuration and gets the next promotion.
        assert served.labels() == [{"stable": 1}] * 3
        assert "loaded on 2 servers" in served.run("promote", 2)
        assert served.labels() == [{"stable": 2}] * 3
