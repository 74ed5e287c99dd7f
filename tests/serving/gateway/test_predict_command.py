"""`catbreeds predict` with several photos: bad ones cost the good ones no answer, and any file name will do."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from serving.model_files import MODEL_RECORD_FILE
from serving.names import printable
from tests.running import catbreeds
from tests.serving.classifier import BREEDS, encoded, picture
from tests.serving.model_server.servers import free_port

WAYS = ("gateway", "grpc", "rest", "workdir")
NAMES = [
    b"\xff\xfe.jpg",
    b"two\nlines.jpg",
    b"*[x]?.jpg",
    b'"quoted";.jpg',
    b"\x1b[31m.jpg",
    "größe.jpg".encode(),
    b"-x.jpg",
]


@pytest.fixture
def ways(gateway, model_server, classifier, tmp_path) -> dict[str, tuple[str, object]]:
    """The option for each way."""
    version = tmp_path / "work" / "serving" / "catbreeds" / "1"
    shutil.copytree(classifier / "1", version)
    (version / MODEL_RECORD_FILE).parent.mkdir(exist_ok=True)
    (version / MODEL_RECORD_FILE).write_text("{}")
    return {
        "gateway": ("--gateway", gateway.url),
        "grpc": ("--grpc", f"localhost:{model_server.port}"),
        "rest": ("--rest", f"http://localhost:{model_server.rest_port}"),
        "workdir": ("--workdir", tmp_path / "work"),
    }


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Good ones of each breed, with bad ones of several kinds between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [
        folder / name for name in ("0.jpg", "text.jpg", "1.jpg", "empty.jpg", "gone.jpg", "2.jpg", "folder", "3.jpg")
    ]
    for path in paths:
        if path.stem.isdigit():
            path.write_bytes(encoded(picture(int(path.stem))))
    (folder / "text.jpg").write_text("no photo")
    (folder / "empty.jpg").touch()
    (folder / "folder").mkdir()
    return paths


@pytest.mark.parametrize("way", WAYS)
def test_a_file_without_end_is_too_large_and_a_pipe_is_read(ways, photos, way):
    pipe = photos[0].with_name("pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(photos[0].read_bytes()))
    writer.start()
    done = catbreeds("predict", "/dev/zero", pipe, *ways[way])
    writer.join()
    assert done.stderr == "catbreeds: /dev/zero: the file is larger than 64 MB\n"
    assert done.stdout.startswith(f"{pipe}: {BREEDS[0]} ")


@pytest.mark.parametrize("way", WAYS)
def test_bad_photos_are_named_and_the_others_are_answered(ways, photos, way):
    done = catbreeds("predict", *photos, *ways[way])
    assert done.returncode == 2
    good = [path for path in photos if path.stem.isdigit()]
    for path, line in zip(good, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path}: {BREEDS[int(path.stem)]} ")
    said = done.stderr.splitlines()
    bad = [path for path in photos if path not in good]
    assert [line.removeprefix("catbreeds: ").split(": ")[0] for line in said] == [str(path) for path in bad]
    for line, reason in zip(said, ("not a JPEG", "the file is empty", "No such file", "Is a directory"), strict=True):
        assert reason in line


def test_in_json_each_photo_has_an_answer_or_an_error(ways, photos):
    done = catbreeds("predict", *photos, *ways["gateway"], "--json")
    assert done.returncode == 2
    rows = json.loads(done.stdout)["photos"]
    assert [row["photo"] for row in rows] == [str(path) for path in photos]
    for path, row in zip(photos, rows, strict=True):
        assert row.keys() == ({"photo", "model", "predictions"} if path.stem.isdigit() else {"photo", "error"})
        assert row.get("error", str(path)).startswith(str(path))


@pytest.mark.parametrize("way", ["gateway", "grpc", "rest"])
def test_a_server_that_is_not_there_is_named_once_with_the_photos_that_it_costs(photos, way):
    port, good = free_port(), photos[:3:2]
    address = f"localhost:{port}" if way == "grpc" else f"http://localhost:{port}"
    done = catbreeds("predict", *good, f"--{way}", address)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert str(port) in first
    assert second == f"catbreeds: no answer for {good[0]}, {good[1]}"


@pytest.mark.parametrize("way", WAYS)
def test_photos_are_answered_whatever_the_name_of_their_file_is(ways, tmp_path, way):
    paths = [tmp_path / os.fsdecode(name) for name in NAMES]
    for path in paths:
        path.write_bytes(encoded(picture(1)))
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    done = catbreeds(
        "predict", *ways[way], "--", *(path.name for path in paths), os.fsdecode(b"bad\xff.jpg"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert [line.partition(f": {BREEDS[1]} ")[0] for line in done.stdout.splitlines()] == [
        printable(p.name) for p in paths
    ]
    assert done.stderr == "catbreeds: bad\\xff.jpg: the file is empty\n"
