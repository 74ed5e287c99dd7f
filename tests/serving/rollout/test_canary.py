"""A canary through a real gateway: its share, its way to stable, and what stops it."""

import json

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
from tests.serving.rollout.traffic import visitors

CRITERIA = CanaryCriteria(min_requests=30)
PATIENCE = 120  # seconds to look at traffic at most; a verdict ends it


@pytest.fixture
def registry(tmp_path, classifiers, request) -> Registry:
    """1 is stable; 2 is as good; 3 answers otherwise than was measured; 4 fails, and has no golden requests."""
    folder, measured = classifiers
    right = [GoldenRequest(photo, breed, value) for photo, breed, value in zip(PHOTOS, BREEDS, measured, strict=True)]
    wrong = [*right[:-1], right[-1]._replace(breed=BREEDS[0])]
    registry = Registry(tmp_path / "work" / "serving" / request.node.name[:60])
    for model, golden in [("good", right), ("good", right), ("good", wrong), ("failing", None)]:
        texts = {GOLDEN_REQUESTS_FILE: json.dumps(golden_requests_document(golden))} if golden else {}
        registry.push(folder / model, {}, None, lambda version, texts=texts: texts)
    return registry


@pytest.fixture
def laptop(tmp_path, registry) -> LocalFleet:
    return LocalFleet(tmp_path / "work", registry.base)


@pytest.fixture
def rollout(registry, laptop, join) -> RolloutController:
    """Two servers, of which the gateway asks one."""
    join(2)
    rollout = RolloutController(registry, laptop, RolloutLimits(loaded=2, poll_seconds=1))
    rollout.sync()
    return rollout


@pytest.fixture
def gateway(rollout, registry, laptop, processes, tmp_path):
    settings = {"model_name": registry.base.name, "model_label": "stable", "traffic_file": laptop.traffic_file}
    gateway = Gateway(tmp_path, processes[0].port, **settings)
    with laptop.announced(GATEWAY, f"127.0.0.1:{gateway.port}"):
        yield gateway
    gateway.stop()


def test_a_canary_gets_its_share_of_the_people_and_then_all_of_them_and_no_request_fails(rollout, registry, gateway):
    with visitors(gateway.url) as seen:
        eventually(lambda: len(seen.versions) == 8)
        golden, told = rollout.start_canary(2, share=0.56)
        assert (golden, len(told.servers)) == (4, 2)
        eventually(lambda: any(2 in versions for versions in seen.versions.values()))
        seen.versions.clear()
        version, analysis = rollout.check_canary(PATIENCE, CRITERIA)
        assert (version, analysis.outcome) == (2, Outcome.PASS), analysis.reason
        eventually(lambda: len(seen.versions) == 8)
        # Each stays with one version, and both have some: the keys are the same in each run.
        assert sorted(map(sorted, seen.versions.values())) == [[1]] * 3 + [[2]] * 5
        rollout.promote(2)
        seen.versions.clear()
        eventually(lambda: len(seen.versions) == 8)
        assert set.union(*seen.versions.values()) <= {1, 2}
        seen.versions.clear()
        eventually(lambda: len(seen.versions) == 8)
        assert set.union(*seen.versions.values()) == {2}
        rollout.rollback()
    assert set(seen.codes) == {200}
    assert registry.labels() == {"stable": 1}


def test_a_canary_that_answers_otherwise_than_measured_is_stopped_before_anybody_asks_it(rollout, registry, gateway):
    with visitors(gateway.url, 2) as seen:
        eventually(lambda: len(seen.versions) == 2)
        with pytest.raises(
            CanaryStopped, match=r"model-server at .*: golden request 4 of version 3: predicted Van, Turkish"
        ):
            rollout.start_canary(3, share=1)
    assert set(seen.codes) == {200}
    assert set.union(*seen.versions.values()) == {1}
    assert registry.labels() == {"stable": 1}
    assert "golden request 4" in registry.stop_reason(3)


def test_a_canary_that_fails_requests_is_stopped_and_stable_gets_them_again(rollout, registry, gateway):
    rollout.start_canary(4, share=0.56)
    with visitors(gateway.url) as seen:
        with pytest.raises(CanaryStopped, match=r"the canary failed 100\.0% of"):
            rollout.check_canary(PATIENCE, CRITERIA)
        assert registry.labels() == {"stable": 1}
        eventually(lambda: len(seen.versions) == 8)  # those too who had the canary
        seen.codes.clear()
        eventually(lambda: seen.codes[200] > 20)
        assert set(seen.codes) == {200}


def test_a_share_for_a_canary_that_is_not_served_goes_to_stable_and_is_counted(gateway, laptop):
    laptop.traffic_file.write_text('{"canary_share": 1}')

    def fallbacks() -> float:
        assert gateway.predict(PHOTOS[0]).json()["model"]["version"] == 1
        return gateway.metric("catbreeds_gateway_canary_fallbacks_total")

    eventually(fallbacks)


def test_without_traffic_there_is_no_verdict_and_without_a_canary_nothing_to_judge(rollout, gateway, registry):
    with pytest.raises(RolloutError, match="no version is canary"):
        rollout.check_canary(0)
    rollout.start_canary(2, share=0.1)
    version, analysis = rollout.check_canary(0, CRITERIA)
    assert (version, analysis.outcome) == (2, Outcome.INCONCLUSIVE)
    assert registry.labels() == {"stable": 1, CANARY: 2}
    assert rollout.stop_canary("by hand")[0] == 2
    assert registry.labels() == {"stable": 1}


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (200, b"<html>sign in</html>", "not the metrics of a gateway"),
        (200, b'catbreeds_gateway_model_server_seconds_count{label="stable"} NaN', "not the metrics of a gateway"),
        (404, b"", "HTTP 404 Not Found; try again$"),
    ],
)
def test_what_answers_otherwise_than_a_gateway_is_named(rollout, registry, laptop, code, body, says):
    rollout.start_canary(2, share=0.1)
    with flaky_server.serving() as server, laptop.announced(GATEWAY, server.address.removeprefix("http://")):
        server.answers["/metrics"] = [flaky_server.status(code, body)]
        with pytest.raises(
            RolloutError, match=f"cannot read the metrics of gateway at .*: {server.address}/metrics: {says}"
        ):
            rollout.check_canary(0, CRITERIA)
    assert registry.labels() == {"stable": 1, CANARY: 2}


def traffic(answered: int, failed: int = 0, slow: int = 0) -> RequestStats:
    """Answers within 0.1 s, but `slow` of them within 1 s."""
    return RequestStats(failed, answered, {0.05: answered, 0.1: slow, 0.5: slow, 1.0: 0, float("inf"): 0})


@pytest.mark.parametrize(
    ("canary", "stable", "outcome"),
    [
        (traffic(1000), traffic(9000), Outcome.PASS),
        (traffic(999, failed=1), traffic(9000), Outcome.PASS),  # chance
        (traffic(980, failed=20), traffic(9000), Outcome.FAIL),
        (traffic(980, failed=20), traffic(8820, failed=180), Outcome.PASS),  # both suffer from something else
        (traffic(0, failed=15), traffic(200), Outcome.FAIL),  # too few to be good, enough to be bad
        (traffic(2, failed=1), traffic(200), Outcome.INCONCLUSIVE),
        (traffic(1000, slow=100), traffic(9000), Outcome.FAIL),
        (traffic(1000, slow=100), traffic(9000, slow=900), Outcome.PASS),
        (traffic(1000, slow=40), traffic(9000), Outcome.PASS),  # less than one in twenty
        (traffic(10, slow=1), traffic(9000), Outcome.INCONCLUSIVE),
        (traffic(0), traffic(9000), Outcome.INCONCLUSIVE),
        (traffic(1000), traffic(0), Outcome.INCONCLUSIVE),
    ],
)
def test_a_canary_is_bad_when_it_fails_or_is_slow_beyond_what_chance_explains(canary, stable, outcome):
    assert compare(canary, stable, CanaryCriteria()).outcome is outcome


def test_twice_as_slow_is_seen_whatever_stable_takes():
    def took(seconds: float) -> RequestStats:
        slower = {bound: 300 if seconds > bound else 0 for bound in (*MODEL_SERVER_SECONDS, float("inf"))}
        return RequestStats(0, 300, slower)

    for usual in (0.011, 0.05, 0.21, 0.9):
        assert compare(took(2 * usual), took(usual), CanaryCriteria()).outcome is Outcome.FAIL
        assert compare(took(1.1 * usual), took(usual), CanaryCriteria()).outcome is Outcome.PASS
