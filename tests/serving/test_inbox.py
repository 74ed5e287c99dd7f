"""Interruptions and deletions while a captured photo is accepted."""

from pathlib import Path

import pytest

from serving import inbox
from serving.capture_reasons import UNCERTAIN
from serving.captures import CaptureStore, NoCapture, id_of, new_token
from serving.client import Answer, Model, Prediction
from serving.photo_origins import read_origins
from tests.serving.classifier import BREEDS, encoded, picture


@pytest.fixture
def store(tmp_path) -> CaptureStore:
    return CaptureStore(tmp_path / "captures")


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "photos" / BREEDS[0]
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(picture(1)))
    return folder.parent


@pytest.fixture
def item(store) -> inbox.Item:
    token = new_token()
    answer = Answer(Model("catbreeds", 4), (Prediction(BREEDS[0], 0.9),), "request", (BREEDS[0],), False)
    store.write(token, encoded(picture(0)), answer, UNCERTAIN)
    (item,) = inbox.read_inbox([store.read(id_of(token))], {}, 0)
    return item


def copies(data: Path) -> list[Path]:
    return list(data.rglob("capture-*"))


@pytest.mark.parametrize("step", ["add_origin", "now"])
def test_a_photo_that_is_deleted_while_it_is_accepted_has_no_copy(store, data, item, monkeypatch, step):
    original = getattr(inbox, step)

    def delete_first(*arguments):
        if (store.folder / item.capture.id.partition("-")[0] / item.capture.id).exists():
            store.delete(item.capture.id)
        return original(*arguments)

    monkeypatch.setattr(inbox, step, delete_first)
    with pytest.raises(NoCapture):
        inbox.accept(store, item, BREEDS[0], data, "ada")
    assert copies(data) == []
    assert read_origins(data) == {}
    assert store.ids() == []


def test_a_photo_whose_accept_was_interrupted_after_the_copy_can_be_rejected(store, data, item, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(store, "write_review", interrupt)
        with pytest.raises(KeyboardInterrupt):
            inbox.accept(store, item, BREEDS[0], data, "ada")
    assert len(copies(data)) == 1
    assert store.copied_to(item.capture.id) == data
    inbox.reject(store, item.capture.id, data, "ada")
    assert copies(data) == []
    assert read_origins(data) == {}
    assert store.copied_to(item.capture.id) is None


def test_names_with_line_separators_are_stored(store, data, item):
    inbox.accept(store, item, BREEDS[0], data, "ada\u2028lovelace\x85")
    (origin,) = read_origins(data).values()
    assert origin.reviewer == "ada\u2028lovelace\x85"
