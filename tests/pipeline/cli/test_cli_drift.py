"""`catbreeds drift` on captured photos, with a small pushed model."""

import io
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageEnhance

from serving.capture_reasons import RANDOM_SHARE, UNCERTAIN
from serving.captures import CaptureStore, new_token
from serving.client import Answer, Model, Prediction
from serving.drift_result import read_drift_result
from serving.model_files import REFERENCE_PHOTOS_FILE
from serving.photo_normalization import normalize_for_prediction
from tests.running import CATBREEDS, catbreeds
from tests.serving.k8s.variants import K8S


@pytest.fixture(scope="session")
def new_photos(generate_photos) -> list[bytes]:
    """Photos like those of the run `small`, as the gateway stores them."""
    folder = generate_photos(breeds=3, photos=25, offset=1000)
    return [normalize_for_prediction(path.read_bytes()) for path in sorted(folder.glob("*/*"))]


def darkened(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(photo))).enhance(0.3).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def cropped(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(photo))
    image.crop((0, 0, image.width, image.width // 2)).save(buffer, "PNG")
    return buffer.getvalue()


def capture(
    folder: Path,
    photos: list[bytes],
    count: int,
    change: Callable[[bytes], bytes] = lambda photo: photo,
    version: int = 1,
    reason: str = RANDOM_SHARE,
    time: str | None = None,
) -> None:
    """Store some of the photos as the gateway does."""
    answer = Answer(Model("catbreeds", version), (Prediction("Fogbell", 0.9),), "id")
    for photo in random.Random(0).sample(photos, count):
        token = new_token()
        CaptureStore(folder).write(token, change(photo), answer, reason)
    if time:
        for path in folder.glob("*/*/answer.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time}))


def drift(small, folder: Path, tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Run the command; return its exit code and its JSON document."""
    page = tmp_path / "page" / "drift.html"
    process = catbreeds("drift", "--captures", folder, "--workdir", small.workdir, "--page", page, "--json", *options)
    assert process.returncode in (0, 3), process.stderr
    return process.returncode, json.loads(process.stdout)


def features(document: dict) -> set[str]:
    """Return the features with drift."""
    return {check["feature"] for check in document["checks"] if check["drift"]}


def test_photos_like_the_test_photos_are_no_drift(small, new_photos, tmp_path):
    folder = tmp_path / "captures"
    # Another version, photos that were not captured at random, and old photos do not count.
    capture(folder, new_photos, 20, darkened, time="2020-01-01T00:00:00.000+00:00")
    capture(folder, new_photos, 30, darkened, version=7)
    capture(folder, new_photos, 60, darkened, reason=UNCERTAIN)
    capture(folder, new_photos, 60)
    code, document = drift(small, folder, tmp_path)
    assert (code, document["drift"], document["version"], document["photos"]) == (0, False, 1, 60)
    names = {"predicted", "confidence", "width", "height", "brightness", "embedding_norm", "unfamiliarity"}
    assert {check["feature"] for check in document["checks"]} == names
    assert not features(document)
    result = read_drift_result(folder)
    assert (result.version, result.photos) == (1, 60)
    assert result.ratios.keys() == names
    assert max(result.ratios.values()) < 1


def test_dark_photos_are_drift_in_words_numbers_and_pictures(small, new_photos, tmp_path):
    folder, page = tmp_path / "captures", tmp_path / "drift.html"
    capture(folder, new_photos, 60, darkened)
    process = catbreeds(
        "drift", "--workdir", small.workdir, "--page", page, env={"CATBREEDS_GATEWAY_CAPTURE_FOLDER": str(folder)}
    )
    assert process.returncode == 3, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    (line,) = [line for line in lines if "brightness: " in line]
    assert line.startswith("drift ")
    assert line.strip().endswith(": drift")
    assert any(line.startswith("ok ") and "height: " in line for line in lines)
    assert "Version 1: drift of " in process.stdout
    assert "60 captured photos" in process.stdout
    assert f"Page: {page}" in process.stdout
    result = read_drift_result(folder)
    assert result.ratios["brightness"] > 1 > result.ratios["width"]
    text = page.read_text()
    assert text.count("<svg") == 7
    assert text.count("data:image/jpeg") == 12
    assert "brightness: " in text


def test_the_job_of_the_manifests_succeeds_with_drift_and_fails_without_a_result(small, new_photos, tmp_path):
    manifests = yaml.safe_load_all((K8S / "components" / "capture" / "drift.yaml").read_text())
    job = next(one for one in manifests if one["kind"] == "CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    volumes = {mount["mountPath"]: str(tmp_path / mount["name"]) for mount in container["volumeMounts"]}
    for name in ("captures", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "tmp" / "serving").symlink_to(small.workdir / "serving")
    capture(tmp_path / "captures", new_photos, 60, darkened)

    def run() -> subprocess.CompletedProcess:
        command = [re.sub("/captures|/tmp", lambda match: volumes[match[0]], part) for part in container["command"]]
        variables = {entry["name"]: volumes[entry["value"]] for entry in container["env"]}
        path = {"PATH": f"{CATBREEDS.parent}:{os.environ['PATH']}"}
        return subprocess.run(command, env=os.environ | variables | path, capture_output=True, text=True, check=False)

    process = run()
    assert process.returncode == 0, process.stdout + process.stderr
    assert read_drift_result(tmp_path / "captures").ratios["brightness"] > 1
    assert (tmp_path / "captures" / "drift.html").exists()
    (tmp_path / "tmp" / "serving").unlink()
    process = run()
    assert process.returncode != 0
    assert "serving" in process.stderr


def test_photos_of_another_shape_are_drift_of_the_size_only(small, new_photos, tmp_path):
    folder = tmp_path / "captures"
    capture(folder, new_photos, 60, cropped)
    code, document = drift(small, folder, tmp_path, "--version", "1")
    assert (code, document["drift"]) == (3, True)
    assert "height" in features(document)
    assert not features(document) & {"width", "brightness"}


def test_too_few_photos_are_no_drift(small, new_photos, tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    assert drift(small, folder, tmp_path)[1] | {"time": None} == {
        "model": "catbreeds",
        "version": None,
        "time": None,
        "days": 7,
        "photos": 0,
        "drift": None,
        "checks": [],
    }
    assert read_drift_result(folder) is None
    capture(folder, new_photos, 49, darkened)
    process = catbreeds("drift", "--captures", folder, "--workdir", small.workdir, "--page", tmp_path / "drift.html")
    assert process.returncode == 0, process.stderr
    assert "not compared: 49 captured photos" in process.stdout
    assert "at least 50 are needed" in process.stdout
    result = read_drift_result(folder)
    assert (result.version, result.photos, result.ratios) == (1, 49, {})


def test_a_version_of_an_earlier_release_is_rejected_with_a_message(copy_small, new_photos, tmp_path):
    folder, workdir = tmp_path / "captures", copy_small()
    capture(folder, new_photos, 1)
    path = workdir / "serving" / "catbreeds" / "1" / REFERENCE_PHOTOS_FILE
    rows = path.read_text().splitlines()

    def message() -> str:
        process = catbreeds("drift", "--captures", folder, "--workdir", workdir)
        assert (process.returncode, process.stdout) == (2, "")
        return process.stderr

    path.write_text("\n".join([*rows, "{}"]))
    assert f"{REFERENCE_PHOTOS_FILE}: damaged: " in message()
    path.write_text("\n".join([*rows, "{"]))
    assert f"{REFERENCE_PHOTOS_FILE}: damaged: " in message()
    path.unlink()
    assert "an earlier release pushed version 1" in message()
    shutil.rmtree(path.parents[1])
    assert "no version 1" in message()


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_folder_that_does_not_exist_is_rejected(tmp_path, path):
    (tmp_path / "file").touch()
    process = catbreeds("drift", "--captures", tmp_path / path, "--workdir", tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(f"catbreeds: captures: {tmp_path / path}: no")
