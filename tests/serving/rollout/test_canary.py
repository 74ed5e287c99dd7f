"""A canary behind a real gateway: its share of the requests, its promotion, and the reasons that stop it."""

import contextlib
import json
import shutil

import pytest

from serving.gateway.metrics import MODEL_SERVER_SECONDS
from serving.labels import CANARY
from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.registry import Registry
from serving.rollout.canary_analysis import Outcome, RequestStats, compare
from serving.rollout.controller import RolloutController
from serving.rollout.errors import CanaryStopped, RolloutError
from serving.rollout.golden_requests import GoldenRequest, golden_requests_document
from serving.rollout.limits import CanaryCriteria, RolloutLimits
from serving.rollout.local_fleet import GATEWAY, LocalFleet
from tests.pipeline import flaky_server
from tests.serving.classifier import BREEDS
from tests.serving.gateway.gateways import PHOTOS, Gateway
from tests.serving.model_server.servers import eventually
from tests.serving.rollout.traffic import gateway_clients

CRITERIA = CanaryCriteria(min_requests=30)
WAIT_SECONDS = 120  # longest time to collect metrics; a decision ends it earlier


@pytest.fixture
def registry(tmp_path, classifiers, request) -> Registry:
    """Versions 1 (stable), 2 (equally good), 3 (one wrong golden request) and 4 (fails, without golden requests)."""
    folder, probabilities = classifiers
    expected = zip(PHOTOS, BREEDS, probabilities, strict=True)
    right = [GoldenRequest(photo, breed, probability) for photo, breed, probability in expected]
    wrong = [*right[:-1], right[-1]._replace(breed=BREEDS[0])]
    registry = Registry(tmp_path / "work" / "serving" / request.node.name[:60])
    for model, golden in [("good", right), ("good", right), ("good", wrong), ("failing", None)]:
        texts = {GOLDEN_REQUESTS_FILE: json.dumps(golden_requests_document(golden))} if golden else {}
        registry.push(folder / model, {}, None, lambda version, texts=texts: texts)
    return registry


@pytest.fixture
def fleet(tmp_path, registry) -> LocalFleet:
    return LocalFleet(tmp_path / "work", registry.base)


@pytest.fixture
def controller(registry, fleet, announce) -> RolloutController:
    """Two servers; the gateway sends requests to one of them."""
    announce(2)
    controller = RolloutController(registry, fleet, RolloutLimits(loaded_versions=2, poll_seconds=1))
    controller.sync()
    return controller


@pytest.fixture
def gateway(controller, registry, fleet, model_servers, tmp_path):
    settings = {"model_name": registry.base.name, "model_label": "stable", "traffic_file": fleet.traffic_file}
    gateway = Gateway(tmp_path, model_servers[0].port, **settings)
    with fleet.announced(GATEWAY, f"127.0.0.1:{gateway.port}"):
        yield gateway
    gateway.stop()


def test_a_canary_gets_its_share_of_the_clients_then_all_of_them_and_no_request_fails(controller, registry, gateway):
    with gateway_clients(gateway.url) as clients:
        eventually(lambda: len(clients.versions) == 8)
        golden_count, result = controller.start_canary(2, share=0.56)
        assert (golden_count, len(result.servers)) == (4, 2)
        eventually(lambda: any(2 in versions for versions in clients.versions.values()))
        clients.versions.clear()
        version, analysis = controller.check_canary(WAIT_SECONDS, CRITERIA)
        assert (version, analysis.outcome) == (2, Outcome.PASS), analysis.reason
        eventually(lambda: len(clients.versions) == 8)
        # Each client stays with one version. The keys are the same in every run, and so is the split.
        assert sorted(map(sorted, clients.versions.values())) == [[1]] * 3 + [[2]] * 5
        controller.promote(2)
        clients.versions.clear()
        eventually(lambda: len(clients.versions) == 8)
        assert set.union(*clients.versions.values()) <= {1, 2}
        clients.versions.clear()
        eventually(lambda: len(clients.versions) == 8)
        assert set.union(*clients.versions.values()) == {2}
        controller.rollback()
    assert set(clients.codes) == {200}
    assert registry.labels() == {"stable": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_set": [BREEDS[0]]}, r"golden request 1 of version \d+: prediction set \[.*, expected \["),
        ({"unfamiliar": True}, r"golden request 1 of version \d+: unfamiliar is False, expected True"),
    ],
)
def test_a_canary_with_another_prediction_set_or_flag_is_stopped(controller, registry, classifiers, change, message):
    folder, probabilities = classifiers
    right = GoldenRequest(PHOTOS[0], BREEDS[0], probabilities[0], sorted(BREEDS[:3]), unfamiliar=False)
    versions = []
    for golden in (right, right._replace(**change)):
        text = json.dumps(golden_requests_document([golden]))
        versions.append(registry.push(folder / "good", {}, None, lambda _, text=text: {GOLDEN_REQUESTS_FILE: text}))
    assert controller.start_canary(versions[0], share=0.5)[0] == 1
    with pytest.raises(CanaryStopped, match=message):
        controller.start_canary(versions[1], share=0.5)


@pytest.mark.parametrize(("precision", "is_stopped"), [("float32", True), ("bfloat16", False)])
def test_the_tolerance_of_golden_requests_depends_on_the_precision(
    controller, registry, classifiers, tmp_path, precision, is_stopped
):
    folder, probabilities = classifiers
    shutil.copytree(folder / "good", tmp_path / "model")
    record = {"model_digest": precision, "breeds": BREEDS, "backbone": {"precision": precision}}
    (tmp_path / "model" / "assets.extra" / "catbreeds.json").write_text(json.dumps(record))
    text = json.dumps(golden_requests_document([GoldenRequest(PHOTOS[0], BREEDS[0], probabilities[0] + 0.04)]))
    version = registry.push(tmp_path / "model", {}, None, lambda _: {GOLDEN_REQUESTS_FILE: text})
    with pytest.raises(CanaryStopped, match="golden request 1") if is_stopped else contextlib.nullcontext():
        controller.start_canary(version, share=0.5)


def test_a_canary_that_fails_a_golden_request_is_stopped_before_it_gets_client_requests(controller, registry, gateway):
    with gateway_clients(gateway.url, 2) as clients:
        eventually(lambda: len(clients.versions) == 2)
        with pytest.raises(
            CanaryStopped, match=r"model-server at .*: golden request 4 of version 3: predicted Van, Turkish"
        ):
            controller.start_canary(3, share=1)
    assert set(clients.codes) == {200}
    assert set.union(*clients.versions.values()) == {1}
    assert registry.labels() == {"stable": 1}
    assert "golden request 4" in registry.stop_reason(3)


def test_a_canary_that_fails_requests_is_stopped_and_stable_gets_all_requests_again(controller, registry, gateway):
    controller.start_canary(4, share=0.56)
    with gateway_clients(gateway.url) as clients:
        with pytest.raises(CanaryStopped, match=r"the canary failed 100\.0% of"):
            controller.check_canary(WAIT_SECONDS, CRITERIA)
        assert registry.labels() == {"stable": 1}
        eventually(lambda: len(clients.versions) == 8)  # including the clients of the canary
        clients.codes.clear()
        eventually(lambda: clients.codes[200] > 20)
        assert set(clients.codes) == {200}


def test_the_share_of_a_canary_that_is_not_served_goes_to_stable_and_is_counted(gateway, fleet):
    fleet.traffic_file.write_text('{"canary_share": 1}')

    def fallbacks() -> float:
        assert gateway.predict(PHOTOS[0]).json()["model"]["version"] == 1
        return gateway.metric("catbreeds_gateway_canary_fallbacks_total")

    eventually(fallbacks)


def test_check_canary_is_inconclusive_without_traffic_and_fails_without_a_canary(controller, gateway, registry):
    with pytest.raises(RolloutError, match="no version is canary"):
        controller.check_canary(0)
    controller.start_canary(2, share=0.1)
    version, analysis = controller.check_canary(0, CRITERIA)
    assert (version, analysis.outcome) == (2, Outcome.INCONCLUSIVE)
    assert registry.labels() == {"stable": 1, CANARY: 2}
    assert controller.stop_canary("by hand")[0] == 2
    assert registry.labels() == {"stable": 1}


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (200, b"<html>sign in</html>", "not the metrics of a gateway"),
        (200, b'catbreeds_gateway_model_server_seconds_count{label="stable"} NaN', "not the metrics of a gateway"),
        (404, b"", "HTTP 404 Not Found; try again$"),
    ],
)
def test_a_response_that_is_not_from_a_gateway_is_an_error_with_the_address(
    controller, registry, fleet, code, body, message
):
    controller.start_canary(2, share=0.1)
    with flaky_server.serving() as server, fleet.announced(GATEWAY, server.address.removeprefix("http://")):
        server.responses["/metrics"] = [flaky_server.status(code, body)]
        with pytest.raises(
            RolloutError, match=f"cannot read the metrics of gateway at .*: {server.address}/metrics: {message}"
        ):
            controller.check_canary(0, CRITERIA)
    assert registry.labels() == {"stable": 1, CANARY: 2}


def stats(succeeded: int, failed: int = 0, slow: int = 0) -> RequestStats:
    """Responses within 0.1 s, except `slow` ones within 1 s."""
    return RequestStats(failed, succeeded, {0.05: succeeded, 0.1: slow, 0.5: slow, 1.0: 0, float("inf"): 0})


@pytest.mark.parametrize(
    ("canary", "stable", "outcome"),
    [
        (stats(1000), stats(9000), Outcome.PASS),
        (stats(999, failed=1), stats(9000), Outcome.PASS),  # chance
        (stats(980, failed=20), stats(9000), Outcome.FAIL),
        (stats(980, failed=20), stats(8820, failed=180), Outcome.PASS),  # both have the same problem
        (stats(0, failed=15), stats(200), Outcome.FAIL),  # too few to pass, enough to fail
        (stats(2, failed=1), stats(200), Outcome.INCONCLUSIVE),
        (stats(1000, slow=100), stats(9000), Outcome.FAIL),
        (stats(1000, slow=100), stats(9000, slow=900), Outcome.PASS),
        (stats(1000, slow=40), stats(9000), Outcome.PASS),  # less than 5 %
        (stats(10, slow=1), stats(9000), Outcome.INCONCLUSIVE),
        (stats(0), stats(9000), Outcome.INCONCLUSIVE),
        (stats(1000), stats(0), Outcome.INCONCLUSIVE),
    ],
)
def test_a_canary_fails_if_its_errors_or_its_latency_are_significantly_worse(canary, stable, outcome):
    assert compare(canary, stable, CanaryCriteria()).outcome is outcome


def test_a_doubled_latency_fails_the_canary_at_any_stable_latency():
    def stats_with_latency(seconds: float) -> RequestStats:
        slower = {bound: 300 if seconds > bound else 0 for bound in (*MODEL_SERVER_SECONDS, float("inf"))}
        return RequestStats(0, 300, slower)

    for stable_seconds in (0.011, 0.05, 0.21, 0.9):
        assert (
            compare(
                stats_with_latency(2 * stable_seconds), stats_with_latency(stable_seconds), CanaryCriteria()
            ).outcome
            is Outcome.FAIL
        )
        assert (
            compare(
                stats_with_latency(1.1 * stable_seconds), stats_with_latency(stable_seconds), CanaryCriteria()
            ).outcome
            is Outcome.PASS
        )
