"""The review page accepts and rejects captured photos."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from serving.capture_reasons import RANDOM_SHARE
from serving.captures import CaptureStore, id_of, new_token
from serving.client import Answer, Model, Prediction
from serving.inbox import accept, read_inbox
from serving.photo_origins import read_origins
from tests.serving.classifier import BREEDS, encoded, picture
from tests.serving.model_server.servers import DEADLINE
from tests.serving.page.test_page import APP, assert_no_exception


@pytest.fixture
def store(tmp_path) -> CaptureStore:
    return CaptureStore(tmp_path / "captures")


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for number, breed in enumerate(BREEDS):
        (folder / breed).mkdir(parents=True)
        (folder / breed / "a.jpg").write_bytes(encoded(picture(number)))
    return folder


@pytest.fixture
def captured(store) -> list[str]:
    """IDs of two captures that the model took for the first breed; a user says that the first is of the third."""
    tokens = [new_token(), new_token()]
    for number, token in enumerate(tokens):
        predictions = tuple(Prediction(breed, 0.7 if breed == BREEDS[0] else 0.1) for breed in BREEDS)
        answer = Answer(Model("catbreeds", 4), predictions, "request", (BREEDS[0],), False)
        store.write(token, encoded(picture(number), quality=60), answer, RANDOM_SHARE)
    store.write_feedback(id_of(tokens[0]), BREEDS[2])
    return [id_of(token) for token in tokens]


@pytest.fixture
def page(store, data, captured, monkeypatch) -> AppTest:
    monkeypatch.setenv("CATBREEDS_PAGE_REVIEW_CAPTURES", str(store.folder))
    monkeypatch.setenv("CATBREEDS_PAGE_REVIEW_PHOTOS", str(data))
    page = assert_no_exception(AppTest.from_file(str(APP), default_timeout=DEADLINE).run())
    return assert_no_exception(page.text_input(key="reviewer").input("ada").run())


def click(page: AppTest, key: str) -> AppTest:
    return assert_no_exception(page.button(key=key).click().run())


def test_a_reviewer_accepts_and_rejects_photos(page, store, data, captured):
    first, second = captured
    assert page.selectbox(key=f"breed {first}").value == BREEDS[2]
    assert any(BREEDS[2] in row.value for row in page.markdown if row.value.startswith("Feedback"))
    click(page, f"accept {first}")
    (path,) = data.rglob("capture-*")
    assert path == data / BREEDS[2] / f"capture-{first}.jpg"
    (origin,) = read_origins(data).values()
    assert (origin.capture, origin.breed, origin.reviewer) == (first, BREEDS[2], "ada")
    page.selectbox(key=f"breed {second}").select(BREEDS[1])
    click(page, f"reject {second}")
    assert store.read(second).review.breed is None
    assert len(list(data.rglob("capture-*"))) == 1
    assert page.info[0].value == "No photos to review."


def test_a_photo_that_another_reviewer_decided_on_keeps_that_decision(page, store, data, captured):
    (item,) = read_inbox([store.read(captured[0])], {}, 0)
    path = accept(store, item, BREEDS[2], data, "grace")
    click(page, f"reject {captured[0]}")
    assert path.is_file()
    assert store.read(captured[0]).review.reviewer == "grace"
    assert page.warning[0].value == "Another reviewer has already decided on that photo."
    assert len(page.selectbox) == 1


def test_decisions_need_a_name(page, captured):
    page.text_input(key="reviewer").input(" ").run()
    for key in (f"accept {captured[0]}", f"reject {captured[0]}"):
        assert page.button(key=key).disabled


def test_problems_are_shown_and_the_photo_stays(page, data, captured):
    (data / BREEDS[2] / "a.jpg").unlink()
    click(page, f"accept {captured[0]}")
    assert "no folder of the breed" in page.error[0].value.replace("\\", "")
    assert len(page.selectbox) == 2


def test_a_photo_that_was_deleted_meanwhile_leaves_the_page(page, store, captured):
    store.delete(captured[0])
    page.run()
    assert page.info[0].value == "This photo expired or was deleted."
    assert len(page.selectbox) == 1
