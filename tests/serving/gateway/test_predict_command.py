"""`catbreeds predict` with several photos: unusable photos do not affect the others, and all file names work."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from serving.model_files import MODEL_RECORD_FILE
from serving.names import printable
from tests.running import catbreeds
from tests.serving.classifier import BREEDS, encoded, one_white_quarter, picture, plain
from tests.serving.model_server.servers import free_port

BACKENDS = ("gateway", "grpc", "rest", "workdir")
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
def backends(gateway, model_server, classifier, tmp_path) -> dict[str, tuple[str, object]]:
    """The command-line option for each backend."""
    version = tmp_path / "work" / "serving" / "catbreeds" / "1"
    shutil.copytree(classifier / "2", version)
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
    """Usable photos of each breed, with several kinds of unusable ones between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [
        folder / name for name in ("0.jpg", "text.jpg", "1.jpg", "empty.jpg", "gone.jpg", "2.jpg", "folder", "3.jpg")
    ]
    for path in paths:
        if path.stem.isdigit():
            path.write_bytes(encoded(picture(int(path.stem))))
    (folder / "text.jpg").write_text("not a photo")
    (folder / "empty.jpg").touch()
    (folder / "folder").mkdir()
    return paths


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_endless_file_is_rejected_as_too_large_and_a_pipe_is_read(backends, photos, backend):
    pipe = photos[0].with_name("pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(photos[0].read_bytes()))
    writer.start()
    done = catbreeds("predict", "/dev/zero", pipe, *backends[backend])
    writer.join()
    assert done.stderr == "catbreeds: /dev/zero: the file is larger than 64 MB\n"
    assert done.stdout.startswith(f"{pipe}: {BREEDS[0]} ")


@pytest.mark.parametrize("backend", BACKENDS)
def test_unusable_photos_are_reported_and_the_others_are_predicted(backends, photos, backend):
    done = catbreeds("predict", *photos, *backends[backend])
    assert done.returncode == 2
    good = [path for path in photos if path.stem.isdigit()]
    for path, line in zip(good, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path}: {BREEDS[int(path.stem)]} ")
    errors = done.stderr.splitlines()
    bad = [path for path in photos if path not in good]
    assert [line.removeprefix("catbreeds: ").split(": ")[0] for line in errors] == [str(path) for path in bad]
    for line, reason in zip(errors, ("not a JPEG", "the file is empty", "No such file", "Is a directory"), strict=True):
        assert reason in line


def test_json_output_has_predictions_or_an_error_for_each_photo(backends, photos):
    done = catbreeds("predict", *photos, *backends["gateway"], "--json")
    assert done.returncode == 2
    rows = json.loads(done.stdout)["photos"]
    assert [row["photo"] for row in rows] == [str(path) for path in photos]
    for path, row in zip(photos, rows, strict=True):
        keys = {"model", "predictions", "prediction_set", "unfamiliar"} if path.stem.isdigit() else {"error"}
        assert row.keys() == {"photo", *keys}
        assert row.get("error", str(path)).startswith(str(path))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_uncertain_prediction_is_reported_in_words(backends, tmp_path, backend):
    for name, image in (("clear", one_white_quarter()), ("unsure", plain("gray")), ("white", plain("white"))):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(image))
    done = catbreeds("predict", "clear.jpg", "unsure.jpg", "white.jpg", *backends[backend], cwd=tmp_path)
    clear, unsure, white = done.stdout.splitlines()
    assert "; " not in clear
    assert "; could be " in unsure
    assert " or " in unsure
    assert "unlike" not in unsure
    assert "; unlike all photos this model was trained on (catbreeds version " in white
    assert "could be" not in white


@pytest.mark.parametrize("backend", ["gateway", "grpc", "rest"])
def test_an_unreachable_server_is_reported_once_with_all_affected_photos(photos, backend):
    port, good = free_port(), photos[:3:2]
    address = f"localhost:{port}" if backend == "grpc" else f"http://localhost:{port}"
    done = catbreeds("predict", *good, f"--{backend}", address)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert str(port) in first
    assert second == f"catbreeds: no prediction for {good[0]}, {good[1]}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_photos_with_any_file_name_are_predicted(backends, tmp_path, backend):
    paths = [tmp_path / os.fsdecode(name) for name in NAMES]
    for path in paths:
        path.write_bytes(encoded(picture(1)))
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    done = catbreeds(
        "predict", *backends[backend], "--", *(path.name for path in paths), os.fsdecode(b"bad\xff.jpg"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert [line.partition(f": {BREEDS[1]} ")[0] for line in done.stdout.splitlines()] == [
        printable(p.name) for p in paths
    ]
    assert done.stderr == "catbreeds: bad\\xff.jpg: the file is empty\n"
