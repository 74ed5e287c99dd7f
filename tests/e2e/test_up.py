"""`catbreeds up` with a pushed model. The tests in tests/serving/rollout cover its response to `promote`."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.client.gateway import GatewayClient
from serving.client.grpc import GrpcClient
from serving.client.rest import RestClient
from serving.registry import Registry
from tests.browser import browser
from tests.e2e.up import Up
from tests.running import catbreeds
from tests.serving.classifier import encoded
from tests.serving.model_server.servers import DEADLINE, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def up(small, tmp_path_factory) -> Iterator[Up]:
    """A running `catbreeds up` with version 1 stable; version 2 is a copy of it."""
    workdir = tmp_path_factory.mktemp("up")
    shutil.copytree(small.workdir / "serving", workdir / "serving")
    registry = Registry(workdir / "serving" / "catbreeds")
    registry.promote(1)
    assert registry.push(registry.path(1), registry.admission(1)) == registry.versions()[-1]
    up = Up(workdir)
    children = psutil.Process(up.process.pid).children(recursive=True)
    yield up
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(DEADLINE) == 0
    assert up.log.read_text().endswith("Stopped.\n")
    assert not any(child.is_running() for child in children)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat_of_mine.jpg"
    draw_photo(BREEDS[1], "up").save(path, quality=90)
    return path


def test_up_prints_addresses_and_writes_a_log_per_program(up):
    printed = up.log.read_text()
    for address in (up.page, f"{up.gateway}/docs", f"REST {up.rest}", f"gRPC {up.grpc}"):
        assert address in printed
    for name in ("model_server", "gateway", "page"):
        assert (up.workdir / "logs" / f"{name}.log").is_file()


def test_page_shows_the_same_prediction_as_curl_and_a_plain_grpc_client(up, photo):
    response = httpx.post(
        f"{up.gateway}/v1/breeds:predict", files={"file": photo.read_bytes()}, timeout=DEADLINE
    ).json()
    breeds = {row["breed"]: row["probability"] for row in response["predictions"]}
    assert predict_with_official_client(up.grpc, photo.read_bytes()) == pytest.approx(breeds, abs=1e-4)
    best = response["predictions"][0]
    with browser() as chromium:
        for width in (390, 1280):
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(DEADLINE * 1000)
            page.goto(up.page)
            page.get_by_text("Choose a photo above.").wait_for()
            page.locator("input[type=file]").set_input_files(photo)
            page.get_by_role("heading", name=f"{best['breed']}, {best['probability']:.0%}").wait_for()
            page.get_by_text("Model catbreeds, version 1.").wait_for()
            for row in response["predictions"]:
                page.get_by_role("row", name=f"{row['breed']} {row['probability']:.1%}").wait_for()
            page.locator("[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.close()


def predict_with_official_client(address: str, photo: bytes) -> dict[str, float]:
    """Return the probabilities by breed that a client of TensorFlow Serving gets."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "catbreeds"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([photo]))
    with grpc.insecure_channel(address) as channel:
        outputs = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=DEADLINE).outputs
    names = [name.decode() for name in outputs["breeds"].string_val]
    return dict(zip(names, outputs["probabilities"].float_val, strict=True))


def test_page_offers_sample_photos(up):
    folders = sorted(path.name for path in (up.workdir / "serve" / "samples").glob("*/*"))
    assert folders == sorted(breed.name for breed in BREEDS[:3])


def test_predict_prints_the_same_prediction_with_every_option(up, photo):
    predictions = []
    for options in (
        ("--gateway", up.gateway),
        ("--grpc", up.grpc, "--label", "stable"),
        ("--rest", up.rest),
        ("--workdir", up.workdir),
    ):
        done = catbreeds("predict", photo, *options, "--json")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["photos"]
        assert row["photo"] == str(photo)
        assert row["model"] == {"name": "catbreeds", "version": 1}
        predictions.append({entry["breed"]: entry["probability"] for entry in row["predictions"]})
    assert all(prediction == pytest.approx(predictions[0], abs=1e-4) for prediction in predictions)


def test_rotated_and_resized_copies_of_a_photo_get_the_same_prediction(up):
    original = draw_photo(BREEDS[1], "copies").resize((1600, 1200))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # rotate 90 degrees clockwise
    copies = [
        encoded(original, quality=90),
        encoded(original.transpose(Image.Transpose.ROTATE_90), quality=90, exif=rotated.tobytes()),
        encoded(original.resize((4000, 3000)), quality=90),
        encoded(original.resize((512, 384)), quality=90),
    ]
    for client in (GatewayClient(up.gateway), GrpcClient(up.grpc), RestClient(up.rest)):
        with client:
            predictions = [
                {entry.breed: entry.probability for entry in client.predict(copy).predictions} for copy in copies
            ]
        for prediction in predictions:
            assert prediction == pytest.approx(predictions[0], abs=0.02)


def test_predict_reports_why_a_prediction_failed(up, photo, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    for arguments, code, message in (
        ((tmp_path / "notes.jpg", "--gateway", up.gateway), 2, f"{tmp_path}/notes.jpg: not a JPEG"),
        ((tmp_path / "none.jpg", "--rest", up.rest), 2, f"{tmp_path}/none.jpg: No such file"),
        ((photo, "--gateway", f"http://localhost:{free_port()}"), 1, "cannot be reached"),
        ((photo, "--grpc", up.grpc, "--label", "gold"), 1, "label: gold"),
        (
            (photo, "--grpc", up.grpc, "--workdir", up.workdir),
            2,
            "--grpc and --workdir exclude each other; pass one of",
        ),
    ):
        done = catbreeds("predict", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("catbreeds: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_port_in_use_is_reported_by_number_and_option_before_anything_starts(up):
    for flag, port in up.ports.items():
        done = catbreeds("up", "--workdir", up.workdir, flag, port)
        assert done.returncode == 2
        assert f"port {port}: " in done.stderr
        assert f"with {flag}" in done.stderr
