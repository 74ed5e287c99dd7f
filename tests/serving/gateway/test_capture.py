"""Capture of photos in the gateway, feedback on them, and their deletion."""

import json
import os
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from serving.captures import CaptureStore, id_of, new_token
from serving.client import Answer, Model, NoSuchCapture, Prediction, RequestRejected
from serving.client.gateway import GatewayClient
from serving.drift_result import DriftResult, write_drift_result
from serving.gateway import capture
from serving.gateway.app import create_app
from serving.gateway.settings import Settings
from tests.serving.classifier import BREEDS, encoded, one_white_quarter, picture, plain
from tests.serving.gateway.gateways import PHOTOS, PREDICT, Gateway, problem, start
from tests.serving.model_server.servers import eventually

KEY, DIGEST = "secret", "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
FEEDBACK = "/v1/feedback"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "captures"


@pytest.fixture
def capturing(start_gateway, model_server, folder) -> Gateway:
    """A gateway that captures all photos."""
    return start_gateway(model_server.port, capture_folder=folder, capture_share=1)


def token(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["captured"]["token"]


def stored(folder: Path, number: int) -> list:
    """Wait until this number of captures is stored, and return them."""
    eventually(lambda: len(list(CaptureStore(folder).read_all())) == number)
    return list(CaptureStore(folder).read_all())


def test_nothing_is_captured_by_default(gateway):
    assert "captured" not in gateway.predict(PHOTOS[0]).json()
    assert problem(gateway.http.post(FEEDBACK, json={"token": new_token(), "breed": BREEDS[0]}))[0] == 404


def test_a_capture_has_the_photo_and_the_whole_answer(capturing, folder):
    response = capturing.predict(PHOTOS[1], params={"top_k": 1}, headers={"X-Request-ID": "mine"})
    (found,) = stored(folder, 1)
    assert found.id == id_of(token(response))
    assert (found.reason, found.feedback) == ("random", None)
    assert found.answer.model == Model("catbreeds", 2)
    assert found.answer.request_id == "mine"
    assert found.answer.best.breed == BREEDS[1]
    assert len(found.answer.predictions) == len(BREEDS)
    assert found.answer.prediction_set == tuple(response.json()["prediction_set"])
    assert found.answer.unfamiliar is False
    assert abs(datetime.fromisoformat(found.time) - datetime.now(UTC)) < timedelta(minutes=5)
    assert capturing.metric('catbreeds_gateway_captures_total{reason="random"}') == 1
    # The token is a secret: only the response contains it.
    for path in folder.rglob("*.json"):
        assert token(response) not in path.read_text()


def test_a_captured_photo_has_no_metadata(capturing, folder):
    exif = Image.Exif()
    exif[0x010F] = "SECRET maker"
    for kind, options in (("JPEG", {"exif": exif, "comment": b"SECRET"}), ("PNG", {"exif": exif})):
        capturing.predict(encoded(picture(1), kind, **options) + b"SECRET")
    for row in stored(folder, 2):
        assert b"SECRET" not in row.photo.read_bytes()
        difference = np.asarray(Image.open(row.photo), float) - np.asarray(picture(1), float)
        assert np.abs(difference).mean() < 5


def test_each_photo_of_a_form_has_its_own_token(capturing, folder):
    rows = capturing.predict(*PHOTOS).json()["photos"]
    assert len({row["captured"]["token"] for row in rows}) == len(PHOTOS)
    best = {row.id: row.answer.best.breed for row in stored(folder, len(PHOTOS))}
    assert [best[id_of(row["captured"]["token"])] for row in rows] == BREEDS


def test_the_random_share_of_the_photos_is_captured(start_gateway, model_server, folder):
    gateway = start_gateway(model_server.port, capture_folder=folder, capture_share=0.3, capture_uncertain=False)
    captured = sum("captured" in gateway.predict(PHOTOS[n % 4]).json() for n in range(300))
    assert 50 < captured < 130
    assert len(stored(folder, captured)) == captured


def test_uncertain_photos_are_captured_too(start_gateway, model_server, folder):
    gateway = start_gateway(model_server.port, capture_folder=folder, capture_share=0)
    photos = [encoded(one_white_quarter()), encoded(plain("gray")), encoded(plain("white"))]
    clear, several, unfamiliar = gateway.predict(*photos).json()["photos"]
    assert "captured" not in clear
    assert {row.id for row in stored(folder, 2)} == {id_of(row["captured"]["token"]) for row in (several, unfamiliar)}
    assert {row.reason for row in stored(folder, 2)} == {"uncertain"}


def test_the_last_feedback_counts(capturing, folder):
    client = GatewayClient(capturing.url)
    answer = client.predict(PHOTOS[2])
    for breed in (BREEDS[2], "not a cat", "unsure", BREEDS[0]):
        client.give_feedback(answer.token, breed)
        assert stored(folder, 1)[0].feedback == breed
    for verdict in ("right", "not_a_cat", "unsure", "wrong"):
        assert capturing.metric(f'catbreeds_gateway_feedback_total{{verdict="{verdict}"}}') == 1
    assert capturing.logged(path=FEEDBACK, code=204)["capture"] == id_of(answer.token)


def test_feedback_without_a_valid_token_or_breed_is_rejected(capturing, folder):
    captured = token(capturing.predict(PHOTOS[0]))
    (found,) = stored(folder, 1)

    def post(content) -> tuple[int, str]:
        return problem(
            capturing.http.post(FEEDBACK, content=content if isinstance(content, str) else json.dumps(content))
        )

    for unknown in (new_token(), found.id, "", "../../x", found.answer.request_id, captured[:-1]):
        assert post({"token": unknown, "breed": BREEDS[0]}) == (404, "no_such_capture")
    for breed in ("Tabby", "", "x" * 10_000):
        assert post({"token": captured, "breed": breed}) == (422, "invalid_feedback")
    for body in ("", "{", "[]", {"token": captured}, {"token": 1, "breed": "x"}, {"breed": BREEDS[0]}):
        assert post(body) == (422, "invalid_feedback")
    assert post({"token": captured, "breed": BREEDS[0], "more": 1}) == (422, "invalid_feedback")
    assert stored(folder, 1)[0].feedback is None
    client = GatewayClient(capturing.url)
    with pytest.raises(RequestRejected, match=f"not one of .*{BREEDS[1]}"):
        client.give_feedback(captured, "Tabby")
    with pytest.raises(NoSuchCapture):
        client.give_feedback(new_token(), BREEDS[0])


def test_a_token_deletes_its_capture(capturing, folder):
    client = GatewayClient(capturing.url)
    first, second = client.predict_many(PHOTOS[:2])
    client.give_feedback(first.token, "unsure")
    client.delete_capture(first.token)
    assert [row.id for row in stored(folder, 1)] == [id_of(second.token)]
    for attempt in (client.delete_capture, lambda token: client.give_feedback(token, "unsure")):
        with pytest.raises(NoSuchCapture):
            attempt(first.token)
    assert first.token not in capturing.log.read_text()


def test_feedback_requires_an_api_key_and_respects_the_limits(start_gateway, model_server, folder):
    settings = {"capture_folder": folder, "capture_share": 1, "api_keys": DIGEST, "max_bytes": 30_000}
    gateway = start_gateway(model_server.port, **settings)
    authorized = {"headers": {"Authorization": f"Bearer {KEY}"}}
    captured = token(gateway.predict(PHOTOS[0], **authorized))
    body = {"token": captured, "breed": BREEDS[0]}
    assert problem(gateway.http.post(FEEDBACK, json=body))[0] == 401
    assert problem(gateway.http.delete(f"/v1/captures/{captured}"))[0] == 401
    assert problem(gateway.http.post(FEEDBACK, json=body | {"breed": "x" * 30_000}, **authorized))[0] == 413
    assert gateway.http.post(FEEDBACK, json=body, **authorized).status_code == 204
    assert gateway.http.delete(f"/v1/captures/{captured}", **authorized).status_code == 204


def test_replicas_share_the_folder(capturing, start_gateway, model_server, folder):
    other = start_gateway(model_server.port, capture_folder=folder, capture_share=1)
    captured = token(capturing.predict(PHOTOS[0]))
    stored(folder, 1)
    body = {"token": captured, "breed": "unsure"}
    assert other.http.post(FEEDBACK, json=body).status_code == 204
    assert capturing.http.delete(f"/v1/captures/{captured}").status_code == 204
    assert problem(other.http.post(FEEDBACK, json=body)) == (404, "no_such_capture")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, mounted at `disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_fails_no_prediction(start_gateway, model_server, small_disk):
    gateway = start_gateway(model_server.port, capture_folder=small_disk / "captures", capture_share=1)
    noise = np.random.default_rng(0).integers(0, 256, [150, 200, 3], np.uint8)
    photo = encoded(Image.fromarray(noise), "PNG")  # 90 kB
    tokens = [token(gateway.predict(photo)) for _ in range(5)]
    failed = 'catbreeds_gateway_captures_dropped_total{reason="failed"}'
    eventually(lambda: gateway.metric(failed) == 3)
    assert len(stored(small_disk / "captures", 2)) == 2
    assert gateway.log.read_text().count("cannot write captures") == 1
    assert not list(small_disk.glob("captures/.incoming/*"))
    lost = {"token": tokens[-1], "breed": "unsure"}
    assert problem(gateway.http.post(FEEDBACK, json=lost)) == (404, "no_such_capture")
    assert gateway.http.delete(f"/v1/captures/{tokens[0]}").status_code == 204
    token(gateway.predict(photo))
    stored(small_disk / "captures", 2)


def test_a_hanging_disk_delays_no_prediction(model_server, folder, monkeypatch):
    hanging = threading.Event()
    write = CaptureStore.write
    monkeypatch.setattr(CaptureStore, "write", lambda *arguments: hanging.wait() and write(*arguments))
    monkeypatch.setattr(capture, "_MAX_PENDING_BYTES", 3 * len(PHOTOS[0]))
    settings = {"model_server": f"localhost:{model_server.port}", "deadline_seconds": 1, "capture_share": 1}
    app = create_app(Settings(capture_folder=str(folder), **settings))
    with TestClient(app) as client:
        answers = [client.post(PREDICT, content=PHOTOS[0]) for _ in range(5)]
        assert [response.status_code for response in answers] == [200] * 5
        tokens = [response.json()["captured"]["token"] for response in answers[:3]]
        assert not any("captured" in response.json() for response in answers[3:])
        assert 'captures_dropped_total{reason="busy"} 2.0' in client.get("/metrics").text
        feedback = {"token": tokens[0], "breed": "unsure"}
        assert problem(client.post(FEEDBACK, json=feedback)) == (504, "timed_out")
        hanging.set()
        assert client.post(FEEDBACK, json=feedback).status_code == 204
    # All captures are written before the gateway ends.
    assert {one.id for one in stored(folder, 3)} == set(map(id_of, tokens))


def test_captures_that_are_being_written_are_finished_at_shutdown(capturing, folder):
    tokens = [token(capturing.predict(PHOTOS[n % 4])) for n in range(20)]
    assert capturing.stop() == 0
    assert {one.id for one in CaptureStore(folder).read_all()} == set(map(id_of, tokens))


def test_an_interrupted_write_leaves_no_capture(folder, monkeypatch):
    store = CaptureStore(folder)
    monkeypatch.setattr(Path, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        store.write(new_token(), PHOTOS[0], answer(), "random")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    monkeypatch.undo()
    assert list(store.read_all()) == []
    (remains,) = (folder / ".incoming").iterdir()
    os.utime(remains, (0, 0))
    store.clean_up(1_000_000, days=1)
    assert not remains.exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("capture_share", "1.5"),
        ("capture_max_bytes", "1000"),
        ("capture_days", "0"),
        ("capture_uncertain", "sometimes"),
        ("capture_folder", __file__),
        ("capture_folder", "/proc/captures"),
    ],
)
def test_an_invalid_setting_stops_the_start(setting, value):
    gateway = start({setting: value}, stderr=subprocess.PIPE, text=True)
    assert f"CATBREEDS_GATEWAY_{setting.upper()}: " in gateway.communicate(timeout=60)[1]
    assert gateway.returncode == 2


def answer() -> Answer:
    return Answer(Model("catbreeds", 1), (Prediction("Birman", 0.9), Prediction("Siamese", 0.1)), "id")


def age(folder: Path, capture_id: str, seconds: float) -> None:
    """Make a capture older within its day."""
    path = folder / capture_id[:8] / capture_id / "answer.json"
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_the_oldest_captures_without_feedback_are_deleted_first_beyond_the_maximum_size(folder):
    store, tokens = CaptureStore(folder), [new_token() for _ in range(6)]
    (size,) = {store.write(one, PHOTOS[0], answer(), "random") for one in tokens}
    for number, one in enumerate(tokens):
        age(folder, id_of(one), 600 - number)
    store.write_feedback(id_of(tokens[0]), "Birman")
    kept = store.clean_up(4 * size, days=30)
    assert kept <= 4 * size
    left = [one for one in tokens if id_of(one) in {row.id for row in store.read_all()}]
    assert left == [tokens[0], *tokens[-len(left) + 1 :]]
    assert len(left) >= 3
    assert store.clean_up(0, days=30) == 0
    assert list(store.read_all()) == []


def test_captures_are_deleted_after_some_days(folder):
    store, old, new = CaptureStore(folder), new_token(), new_token()
    old = f"{datetime.now(UTC) - timedelta(days=9):%Y%m%d}{old[8:]}"
    for one in (old, new):
        store.write(one, PHOTOS[0], answer(), "random")
    store.clean_up(10**9, days=10)
    assert len(list(store.read_all())) == 2
    store.clean_up(10**9, days=8)
    assert [row.id for row in store.read_all()] == [id_of(new)]
    assert [day.name for day in folder.glob("2*")] == [new[:8]]


def test_expired_captures_are_deleted_when_the_gateway_starts(start_gateway, model_server, folder):
    old = f"{datetime.now(UTC) - timedelta(days=9):%Y%m%d}{new_token()[8:]}"
    CaptureStore(folder).write(old, PHOTOS[0], answer(), "random")
    start_gateway(model_server.port, capture_folder=folder, capture_share=0, capture_days=8)
    stored(folder, 0)


def test_the_last_drift_result_is_exported(model_server, folder, monkeypatch):
    monkeypatch.setattr(capture, "_CLEAN_UP_SECONDS", 0.05)
    folder.mkdir()
    write_drift_result(folder, DriftResult(3, 1796000000.5, 120, {"brightness": 2.5, "width": 0.5}))
    settings = Settings(model_server=f"localhost:{model_server.port}", capture_folder=str(folder))
    with TestClient(create_app(settings)) as client:

        def exported() -> set[str]:
            lines = client.get("/metrics").text.splitlines()
            prefix = "catbreeds_gateway_drift_"
            return {line.removeprefix(prefix) for line in lines if line.startswith(prefix)}

        first = {'ratio{feature="brightness",version="3"} 2.5', 'ratio{feature="width",version="3"} 0.5'}
        first |= {'photos{version="3"} 120.0', 'timestamp_seconds{version="3"} 1.7960000005e+09'}
        eventually(lambda: exported() == first)
        # Another version, and too few photos for a comparison.
        write_drift_result(folder, DriftResult(4, 1796086400, 20, {}))
        eventually(lambda: exported() == {'photos{version="4"} 20.0', 'timestamp_seconds{version="4"} 1.7960864e+09'})
        (folder / "drift.json").write_text("{}")
        eventually(lambda: not exported())
    assert not list(folder.glob(".drift*"))


def test_a_photo_beyond_the_maximum_size_deletes_no_other(start_gateway, model_server, folder):
    gateway = start_gateway(model_server.port, capture_folder=folder, capture_share=1, capture_max_bytes=1_000_000)
    kept = token(gateway.predict(PHOTOS[0]))
    noise = np.random.default_rng(0).integers(0, 256, [700, 700, 3], np.uint8)
    token(gateway.predict(encoded(Image.fromarray(noise), "PNG")))  # 1.5 MB
    eventually(lambda: gateway.metric('catbreeds_gateway_captures_dropped_total{reason="full"}') == 1)
    assert [row.id for row in stored(folder, 1)] == [id_of(kept)]


def test_the_size_of_the_captures_is_limited(start_gateway, model_server, folder):
    gateway = start_gateway(model_server.port, capture_folder=folder, capture_share=1, capture_max_bytes=1_000_000)
    noise = np.random.default_rng(0).integers(0, 256, [300, 300, 3], np.uint8)
    tokens = [token(gateway.predict(encoded(Image.fromarray(noise), "PNG"))) for _ in range(6)]  # 0.27 MB each
    eventually(lambda: gateway.metric('catbreeds_gateway_captures_total{reason="random"}') == 6)
    ids = [row.id for row in CaptureStore(folder).read_all()]
    assert 2 <= len(ids) <= 3
    assert id_of(tokens[-1]) in ids


def test_files_that_are_not_captures_are_kept(folder):
    photo = folder / "20200101" / "cat.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(PHOTOS[0])
    CaptureStore(folder).clean_up(0, days=1)
    assert photo.exists()


def test_the_answers_are_json_lines(folder):
    store = CaptureStore(folder)
    for _ in range(2):
        store.write(new_token(), PHOTOS[0], answer(), "random")
    lines = "".join(path.read_text() for path in folder.glob("*/*/answer.json")).splitlines()
    assert {json.loads(line)["id"] for line in lines} == {row.id for row in store.read_all()}
