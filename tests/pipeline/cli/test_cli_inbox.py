"""The command `inbox`: order and display of captures; accepting, rejecting and forgetting them."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.capture_reasons import RANDOM_SHARE, UNCERTAIN
from serving.captures import CaptureStore, NoCapture, id_of, new_token
from serving.client import Answer, Model, Prediction
from serving.client.answers import NOT_A_CAT, UNSURE
from serving.photo_origins import read_origins
from tests.running import catbreeds

FIRST, SECOND, THIRD = (breed.name for breed in BREEDS[:3])


@pytest.fixture
def store(tmp_path) -> CaptureStore:
    return CaptureStore(tmp_path / "captures")


@pytest.fixture
def data(small, tmp_path) -> Path:
    return shutil.copytree(small.photos, tmp_path / "photos")


@pytest.fixture
def inbox(small, store, data):
    """Function that runs `catbreeds inbox` with the captures, the photo folder and the workdir of a run."""

    def run(*arguments: object, code: int = 0):
        options = ("--captures", store.folder, "--data", data, "--workdir", small.workdir)
        done = catbreeds("inbox", *arguments, *options)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def jpeg(path: Path, image: Image.Image) -> bytes:
    image.save(path, quality=90)
    return path.read_bytes()


@pytest.fixture
def capture(store, tmp_path):
    """Function that writes a capture and returns its token; each has another photo unless one is given."""
    number = iter(range(100))

    def write(
        predicted: str = FIRST,
        probability: float = 0.9,
        feedback: str | None = None,
        reason: str = RANDOM_SHARE,
        prediction_set: tuple[str, ...] | None = None,
        image: Image.Image | None = None,
    ) -> str:
        image = image or draw_photo(BREEDS[0], f"capture {next(number)}")
        others = [breed for breed in (FIRST, SECOND, THIRD) if breed != predicted]
        predictions = (Prediction(predicted, probability), *(Prediction(b, (1 - probability) / 2) for b in others))
        answer = Answer(Model("catbreeds", 7), predictions, "request", prediction_set or (predicted,), False)
        token = new_token()
        store.write(token, jpeg(tmp_path / "capture.jpg", image), answer, reason)
        if feedback:
            store.write_feedback(id_of(token), feedback)
        return token

    return write


def documents(inbox, *arguments) -> list[dict]:
    return json.loads(inbox("--json", *arguments).stdout)


def files(data: Path) -> list[str]:
    return sorted(path.relative_to(data).as_posix() for path in data.rglob("capture-*"))


def test_the_most_useful_captures_come_first_and_look_alikes_are_spread(inbox, capture):
    sure = capture(probability=0.95)
    unsure = capture(probability=0.5)
    several = capture(probability=0.8, prediction_set=(FIRST, SECOND))
    agreeing = capture(probability=0.99, feedback=FIRST)
    burst = draw_photo(BREEDS[1], "burst")
    wrong = [
        capture(probability=0.6 + number / 100, feedback=SECOND, image=ImageOps.expand(burst, number, "white"))
        for number in range(3)
    ]
    not_a_cat = capture(probability=0.7, feedback=NOT_A_CAT)
    rows = documents(inbox)
    expected = [wrong[0], not_a_cat, several, unsure, sure, agreeing, wrong[1], wrong[2]]
    assert [row["id"] for row in rows] == [id_of(token) for token in expected]
    assert [row["look_alikes"] for row in rows] == [2, 0, 0, 0, 0, 0, 2, 2]
    assert [row["proposed_breed"] for row in rows[:3]] == [SECOND, None, FIRST]
    assert [row["id"] for row in documents(inbox, "--limit", "2")] == [id_of(token) for token in expected[:2]]


def test_near_duplicates_of_training_photos_are_named(inbox, capture, small):
    path = next((small.photos / FIRST).iterdir())
    capture(image=Image.open(path).convert("RGB").resize((120, 120)))
    capture()
    found = {row["near_duplicate_of"] for row in documents(inbox)}
    assert found == {None, f"{FIRST}/{path.name}"}


def test_table_and_page_show_photo_answer_feedback_and_commands(inbox, capture, tmp_path):
    token = capture(feedback=SECOND, prediction_set=(FIRST, THIRD))
    page = tmp_path / "page.html"
    output = inbox("--html", page).stdout
    short = id_of(token).partition("-")[2][:8]
    for text in (short, f"{FIRST} 90% (v7)", SECOND, f"or {THIRD}", "1 of 1 capture"):
        assert text in " ".join(output.split())
    html = page.read_text()
    assert f"catbreeds inbox accept {short}" in html
    assert f"Feedback: {SECOND}" in html
    assert html.count('src="data:image/jpeg;base64,') == 1
    assert "<script" not in html


def test_without_captures_and_without_a_run(inbox, capture, store, data, tmp_path):
    assert "no such folder" in inbox(code=2).stderr
    capture()
    done = catbreeds("inbox", "--captures", store.folder, "--workdir", tmp_path)
    assert "Near-duplicates are unknown" in done.stdout
    arguments = ("inbox", "accept", "x", "--captures", store.folder, "--workdir", tmp_path)
    assert "pass --data" in catbreeds(*arguments).stderr
    assert "pass --captures" in catbreeds("inbox").stderr
    misplaced = catbreeds("inbox", "--captures", store.folder, "accept", "x")
    assert "after the command" in misplaced.stderr


@pytest.mark.parametrize(("feedback", "breed"), [(None, FIRST), (UNSURE, FIRST), (SECOND, SECOND)])
def test_an_accepted_photo_becomes_a_file_with_its_origin(inbox, capture, store, data, feedback, breed):
    token = capture(feedback=feedback, reason=UNCERTAIN)
    output = inbox("accept", id_of(token)).stdout
    assert f"accepted as {breed} (train only)" in output
    (path,) = files(data)
    assert path == f"{breed}/capture-{id_of(token)}.jpg"
    photo = (data / path).read_bytes()
    assert photo == store.read(id_of(token)).photo.read_bytes()
    origin = read_origins(data)[hashlib.sha256(photo).hexdigest()]
    assert (origin.capture, origin.reason, origin.version) == (id_of(token), UNCERTAIN, 7)
    assert (origin.predicted, origin.feedback, origin.breed) == (FIRST, feedback, breed)
    assert token not in (data / "origins.jsonl").read_text()
    assert documents(inbox) == []
    (row,) = documents(inbox, "--all")
    assert (row["decision"], row["breed"], row["near_duplicate_of"]) == ("accepted", breed, None)


def test_accepting_again_changes_the_breed_and_keeps_one_copy(inbox, capture, data):
    token = capture()
    short = id_of(token).partition("-")[2][:8]
    inbox("accept", short)
    inbox("accept", short)
    assert files(data) == [f"{FIRST}/capture-{id_of(token)}.jpg"]
    inbox("accept", short, "--breed", THIRD)
    assert files(data) == [f"{THIRD}/capture-{id_of(token)}.jpg"]
    assert [origin.breed for origin in read_origins(data).values()] == [THIRD]


def test_an_interrupted_accept_leaves_no_photo_without_origin_and_can_be_repeated(inbox, capture, data):
    token = capture()
    (data / FIRST / f".capture-{id_of(token)}.jpg").mkdir()  # the photo cannot be written
    inbox("accept", id_of(token), code=2)
    assert files(data) == []
    assert [origin.capture for origin in read_origins(data).values()] == [id_of(token)]
    assert len(documents(inbox)) == 1
    (data / FIRST / f".capture-{id_of(token)}.jpg").rmdir()
    inbox("accept", id_of(token))
    assert files(data) == [f"{FIRST}/capture-{id_of(token)}.jpg"]


def test_a_breed_must_have_a_folder_unless_it_is_new(inbox, capture, data):
    token = capture()
    error = inbox("accept", id_of(token), "--breed", FIRST[:-1] + "x", code=2).stderr
    assert f"{FIRST!r}" in error
    assert "--new-breed" in error
    error = inbox("accept", id_of(token), "--breed", FIRST.upper(), "--new-breed", code=2).stderr
    assert f"{FIRST!r}" in error
    for name in ("..", "a/b", ".hidden", " "):
        inbox("accept", id_of(token), "--breed", name, "--new-breed", code=2)
    assert files(data) == []
    assert read_origins(data) == {}
    inbox("accept", id_of(token), "--breed", "Singapura", "--new-breed")
    assert files(data) == [f"Singapura/capture-{id_of(token)}.jpg"]


def test_not_a_cat_needs_a_breed(inbox, capture, data):
    token = capture(feedback=NOT_A_CAT)
    assert "not a cat" in inbox("accept", id_of(token), code=2).stderr
    inbox("accept", id_of(token), "--breed", FIRST)
    assert len(files(data)) == 1


def test_a_photo_that_is_already_in_the_folder_is_not_accepted(inbox, capture, store, data):
    token = capture()
    photo = store.read(id_of(token)).photo
    shutil.copy(photo, data / SECOND / "mine.jpg")
    assert "mine.jpg is the same photo" in inbox("accept", id_of(token), code=2).stderr
    assert files(data) == []


def test_rejected_captures_leave_the_list_and_the_photo_folder(inbox, capture, data):
    first, second = capture(), capture()
    inbox("accept", id_of(first))
    output = inbox("reject", id_of(first), id_of(second)).stdout
    assert output.count(": rejected") == 2
    assert f"removed {data / FIRST / f'capture-{id_of(first)}.jpg'}" in output
    assert files(data) == []
    assert read_origins(data) == {}
    assert documents(inbox) == []
    assert {row["decision"] for row in documents(inbox, "--all")} == {"rejected"}


def test_forget_deletes_the_capture_and_its_copies_even_if_they_were_renamed(inbox, capture, store, data):
    token = capture()
    inbox("accept", id_of(token))
    (data / FIRST / f"capture-{id_of(token)}.jpg").rename(data / SECOND / "renamed.jpg")
    output = inbox("forget", token).stdout
    assert re.search(r"deleted; removed .*renamed\.jpg", output)
    assert not (data / SECOND / "renamed.jpg").exists()
    assert read_origins(data) == {}
    with pytest.raises(NoCapture):
        store.read(id_of(token))
    assert "no such capture" in inbox("forget", id_of(token), code=2).stderr


def test_pages_in_the_folder_that_show_a_deleted_capture_are_deleted(inbox, capture, store):
    first, second = capture(), capture()
    page = store.folder / "inbox.html"
    inbox("--limit", "1", "--html", page)
    shown, other = (first, second) if id_of(first) in page.read_text() else (second, first)
    store.delete(id_of(other))
    assert page.exists()
    store.delete(id_of(shown))
    assert not page.exists()
    old = store.folder / "old.html"
    old.touch()
    os.utime(old, (0, 0))
    store.clean_up(max_bytes=10**9, days=30)
    assert not old.exists()


def test_a_sender_can_delete_an_accepted_photo_after_the_capture_expired(inbox, capture, store, data):
    token = capture()
    inbox("accept", id_of(token))
    store.clean_up(max_bytes=0, days=30)
    assert list(store.read_all()) == []
    store.delete(id_of(token))
    capture()
    assert f"catbreeds inbox forget {id_of(token)}" in inbox().stdout
    assert "deleted; removed" in inbox("forget", id_of(token)).stdout
    assert files(data) == []
    assert "inbox forget" not in inbox().stdout


def test_forget_finds_the_folder_that_a_photo_was_accepted_to(inbox, capture, store, data, tmp_path):
    token = capture()
    inbox("accept", id_of(token))
    other = tmp_path / "other"
    (other / FIRST).mkdir(parents=True)
    moved = data.rename(tmp_path / "moved")
    arguments = ("inbox", "forget", id_of(token), "--captures", store.folder, "--data", other, "--workdir", tmp_path)
    assert "which is not on this machine; pass --data" in catbreeds(*arguments).stderr
    moved.rename(data)
    assert "deleted; removed" in catbreeds(*arguments).stdout
    assert files(data) == []


def test_breed_folders_may_be_links(inbox, capture, data, tmp_path):
    token = capture()
    (data / FIRST).rename(tmp_path / "elsewhere")
    (data / FIRST).symlink_to(tmp_path / "elsewhere")
    inbox("accept", id_of(token))
    assert (tmp_path / "elsewhere" / f"capture-{id_of(token)}.jpg").is_file()
    inbox("forget", token)
    assert not (tmp_path / "elsewhere" / f"capture-{id_of(token)}.jpg").exists()


def test_the_random_share_is_shown_in_an_order_that_does_not_depend_on_the_answers(inbox, capture):
    tokens = [capture(probability=0.4 + number / 10) for number in range(5)]
    capture(reason=UNCERTAIN)
    rows = documents(inbox, "--random")
    assert [row["id"] for row in rows] == sorted(map(id_of, tokens))
    inbox("reject", rows[0]["id"])
    assert "Random share: 1 of 5 reviewed." in inbox().stdout


def test_near_duplicates_within_one_command_are_named(inbox, capture):
    image = draw_photo(BREEDS[1], "twice")
    first, second = capture(image=image), capture(image=ImageOps.expand(image, 1, "white"))
    output = inbox("accept", id_of(first), id_of(second)).stdout
    assert f"Nearly the same photo as capture {id_of(first)}." in output


def test_damaged_captures_are_named_and_left_out(inbox, capture, store):
    tokens = [capture() for _ in range(3)]
    store.read(id_of(tokens[0])).photo.write_bytes(b"")
    (store.read(id_of(tokens[1])).photo.parent / "answer.json").write_text("")
    done = inbox("--json")
    assert [row["id"] for row in json.loads(done.stdout)] == [id_of(tokens[2])]
    for token in tokens[:2]:
        assert id_of(token) in done.stderr
    assert "damaged" in inbox("accept", id_of(tokens[1]), code=2).stderr


def test_ambiguous_and_unknown_ids_are_named(inbox, capture):
    capture()
    capture()
    assert "2 captures begin with it" in inbox("reject", "20", code=2).stderr
    assert "zz: no such capture" in inbox("reject", "zz", code=2).stderr


def test_a_damaged_file_of_origins_is_named(inbox, capture, data):
    token = capture()
    (data / "origins.jsonl").write_text("{\n")
    assert "origins.jsonl: line 1 is damaged" in inbox("accept", id_of(token), code=2).stderr
