"""The page shows predictions, prompts for a photo, and explains errors."""

import html
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from streamlit.testing.v1 import AppTest

from serving.captures import CaptureStore
from serving.local.processes import Program, unready_reason
from serving.page.escaping import escape_markdown
from tests.serving.classifier import BREEDS, encoded, one_white_quarter, plain
from tests.serving.gateway.gateways import PHOTOS, Gateway
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

APP = Path(__file__).parents[3] / "serving" / "page" / "app.py"
PREFIX = "CATBREEDS_PAGE_"


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory) -> Iterator[Gateway]:
    """A gateway in front of the model server with versions 1 and 2."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), model_server.port)
    yield gateway
    gateway.stop()


@pytest.fixture
def visit(monkeypatch) -> Callable[..., AppTest]:
    """Open the page with the given settings."""

    def open_page(**settings: object) -> AppTest:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(PREFIX + name.upper(), str(value))
        return assert_no_exception(AppTest.from_file(str(APP), default_timeout=DEADLINE).run())

    return open_page


def assert_no_exception(page: AppTest) -> AppTest:
    assert not page.exception, page.exception
    return page


def upload(page: AppTest, photo: bytes, name: str = "cat.jpg") -> AppTest:
    page.get("file_uploader")[0].upload(name, photo)
    return assert_no_exception(page.run())


def test_a_photo_shows_its_breed_all_probabilities_and_the_model_version(visit, gateway):
    expected = gateway.predict(PHOTOS[1]).json()["predictions"]
    page = upload(visit(gateway=gateway.url), PHOTOS[1])
    assert page.subheader[0].value == f"{BREEDS[1]}, {expected[0]['probability']:.0%}"
    table = page.table[0].value
    assert list(table["Breed"]) == [row["breed"] for row in expected]
    assert list(table["Probability"]) == [f"{row['probability']:.1%}" for row in expected]
    bars = json.loads(page.get("vega_lite_chart")[0].proto.spec)["description"]
    assert all(f"{row['breed']} {row['probability']:.0%}" in bars for row in expected)
    assert "Model catbreeds, version 2." in page.caption[0].value
    assert not page.error


def test_another_photo_replaces_the_prediction(visit, gateway):
    page = visit(gateway=gateway.url)
    for photo, breed in zip(PHOTOS, BREEDS, strict=True):
        assert upload(page, photo).subheader[0].value.replace("\\", "").startswith(breed)


def test_each_visitor_has_one_unique_request_key(visit):
    keys = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["X-Request-Key"])
            self.send_error(503)

        def log_message(self, *_):
            pass

    with HTTPServer(("localhost", 0), Recorder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for page in [visit(gateway=f"http://localhost:{server.server_port}") for _ in range(2)]:
            for photo in PHOTOS[:2]:
                upload(page, photo)
        server.shutdown()
    first, second, third, fourth = keys
    assert first == second
    assert third == fourth
    assert first != third
    assert None not in keys


def test_only_an_uncertain_prediction_shows_a_warning(visit, gateway):
    page = upload(visit(gateway=gateway.url), encoded(plain("gray")))
    (warning,) = page.warning
    text = warning.value.replace("\\", "")
    assert text.startswith("This could be ")
    assert all(breed in text for breed in BREEDS)
    assert not upload(page, encoded(one_white_quarter())).warning


def test_an_unfamiliar_photo_shows_a_warning(visit, gateway):
    page = upload(visit(gateway=gateway.url), encoded(plain("white")))
    (warning,) = page.warning
    assert "unlike all photos this model was trained on" in warning.value


def test_a_version_without_prediction_sets_shows_a_warning_for_a_low_probability(visit, model_server, tmp_path):
    gateway = Gateway(tmp_path, model_server.port, model_label="stable")
    try:
        page = upload(visit(gateway=gateway.url), encoded(plain("gray")))
        assert "The model is unsure." in page.warning[0].value
        assert "25%" in page.warning[0].value
        assert not upload(page, encoded(one_white_quarter())).warning
    finally:
        gateway.stop()


@pytest.fixture
def capturing(model_server, tmp_path) -> Iterator[Gateway]:
    """A gateway that captures all photos in `captures`."""
    gateway = Gateway(tmp_path, model_server.port, capture_folder=tmp_path / "captures", capture_share=1)
    yield gateway
    gateway.stop()


def click(page: AppTest, label: str) -> AppTest:
    next(button for button in page.button if button.label == label).click()
    return assert_no_exception(page.run())


def test_a_photo_that_is_not_captured_has_no_feedback_buttons(visit, gateway):
    page = upload(visit(gateway=gateway.url), PHOTOS[1])
    assert "Right" not in [button.label for button in page.button]


def test_a_visitor_gives_feedback_on_a_captured_photo(visit, capturing, tmp_path):
    store = CaptureStore(tmp_path / "captures")
    page = upload(visit(gateway=capturing.url), PHOTOS[1])
    click(page, "Right")
    assert [capture.feedback for capture in store.read_all()] == [BREEDS[1]]
    assert BREEDS[1] in page.success[0].value.replace("\\", "")
    assert set(page.selectbox[0].options) == {*BREEDS, "Not a cat", "I am not sure"} - {BREEDS[1]}
    for breed, label in ((BREEDS[0], BREEDS[0]), ("not a cat", "Not a cat"), ("unsure", "I am not sure")):
        page.selectbox[0].select(breed)
        page.run()
        click(page, "Send")
        assert label in page.success[0].value.replace("\\", "")
        # The photo was sent once, although the script ran several times.
        assert [capture.feedback for capture in store.read_all()] == [breed]
    upload(page, PHOTOS[2])
    assert not page.success
    assert sorted(capture.answer.best.breed for capture in store.read_all()) == sorted(BREEDS[1:3])


def test_a_visitor_deletes_a_captured_photo(visit, capturing, tmp_path):
    page = click(upload(visit(gateway=capturing.url), PHOTOS[1]), "Delete this photo")
    assert page.info[0].value == "This photo is not stored any more."
    assert not list(CaptureStore(tmp_path / "captures").read_all())
    assert not page.error


def test_feedback_on_a_capture_that_no_longer_exists_says_that_it_is_not_stored(visit, capturing, tmp_path):
    page = upload(visit(gateway=capturing.url), PHOTOS[1])
    shutil.rmtree(tmp_path / "captures")
    assert click(page, "Right").info[0].value == "This photo is not stored any more."


def test_without_a_photo_the_page_prompts_for_one_and_shows_the_model_version(visit, gateway):
    page = visit(gateway=gateway.url)
    assert "Choose a photo above." in page.info[0].value
    assert page.caption[0].value == "Model catbreeds, version 2, is ready."


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.jpg", b"not a photo", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image"),
        ("cut.jpg", PHOTOS[0][: len(PHOTOS[0]) // 2], "the image is damaged or cut off"),
        ("tiny.png", encoded(Image.new("RGB", (4, 4)), "PNG"), "the shorter side must have at least 32"),
    ],
)
def test_an_unusable_photo_shows_the_reason(visit, gateway, name, content, reason):
    page = upload(visit(gateway=gateway.url), content, name)
    assert page.error[0].value.replace("\\", "").startswith("**This photo cannot be used:** ")
    assert reason in page.error[0].value.replace("\\", "")
    assert "photo 1" not in page.error[0].value
    assert not page.subheader


@pytest.mark.parametrize(
    "name", ["cat.jfif", "cat.JPE", "cat.hif", "cat.pjpeg", "IMG_0815", "cat.jpg.download", ".jpg"]
)
def test_photos_are_recognized_by_content_and_not_by_file_name(visit, gateway, name):
    page = visit(gateway=gateway.url)
    assert not page.get("file_uploader")[0].proto.type
    assert upload(page, PHOTOS[1], name).subheader[0].value.startswith(BREEDS[1])


def test_an_unreachable_gateway_shows_an_error_with_and_without_a_photo(visit):
    page = visit(gateway=f"http://localhost:{free_port()}")
    for visited in (page, upload(page, PHOTOS[0])):
        assert "The gateway is not reachable." in visited.error[0].value
        assert visited.button[0].label == "Try again"


@pytest.mark.parametrize("missing", ["model", "model server"])
def test_a_gateway_without_a_model_and_an_unreachable_gateway_show_different_errors(
    visit, model_server, tmp_path, missing
):
    if missing == "model":
        gateway = Gateway(tmp_path, model_server.port, model_label="canary")
    else:
        gateway = Gateway(tmp_path, free_port())
    try:
        page = upload(visit(gateway=gateway.url), PHOTOS[0])
        assert page.error[0].value.startswith("**The model is not available.** The gateway is running")
    finally:
        gateway.stop()


def test_samples_have_the_names_of_their_folders(visit, gateway, tmp_path):
    assert "Samples" not in visit(gateway=gateway.url).get("button_group")[0].options
    for breed, photo in zip(BREEDS, PHOTOS, strict=True):
        (tmp_path / breed).mkdir()
        (tmp_path / breed / f"photo{'' if breed == BREEDS[2] else '.jfif'}").write_bytes(photo)
    (tmp_path / "ABOUT.txt").write_text("Photos to try.")
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "hidden.jpg").write_bytes(PHOTOS[0])
    (tmp_path / BREEDS[0] / "damaged.jpg").write_bytes(PHOTOS[0][:40])
    page = visit(gateway=gateway.url, samples=tmp_path)
    page.get("button_group")[0].set_value("Samples")
    page.run()
    assert len(page.button) == len(BREEDS)
    assert any("damaged" in caption.value and "cannot be displayed" in caption.value for caption in page.caption)
    button = next(button for button in page.button if button.label == BREEDS[2])
    assert assert_no_exception(button.click().run()).subheader[0].value.startswith(BREEDS[2])


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "GATEWAY",
            "http://http://gateway:8000/predict/predict",
            "the address of the gateway without a path, http://HOST:PORT",
        ),
        ("GATEWAY", "http://gateway:8000/predict", "the address of the gateway without a path, http://HOST:PORT"),
        ("GATEWAY", "http://{GATEWAY}", "the address of the gateway without a path, http://HOST:PORT"),
        ("GATEWAY", "gateway:8000", "the address of the gateway without a path, http://HOST:PORT"),
        ("GATEWAY", "http://gateway:", "the port is missing"),
        ("GATEWAY", "http://gateway:many", "Port could not be cast"),
        ("SAMPLES", "/nowhere/at/all", "folder not found"),
        ("GATEWAI", "http://gateway:8000", "no such setting; available settings: CATBREEDS_PAGE_GATEWAY"),
    ],
)
def test_an_invalid_setting_stops_the_start_with_an_error_that_names_it(variable, value, message):
    process = subprocess.run(
        [sys.executable, "-m", "serving.page"],
        env={**os.environ, PREFIX + variable: value},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"{PREFIX}{variable}: ")
    assert message in process.stderr


def test_settings_of_other_streamlit_projects_do_not_change_the_address_of_the_page(tmp_path):
    for folder in (tmp_path, tmp_path / "here"):
        (folder / ".streamlit").mkdir(parents=True)
        (folder / ".streamlit" / "config.toml").write_text(
            '[global]\ndevelopmentMode = true\n[server]\nbaseUrlPath = "elsewhere"\nport = 1\n'
            'sslCertFile = "no.pem"\nsslKeyFile = "no.pem"\n'
        )
    port = free_port()
    foreign = {
        "STREAMLIT_SERVER_BASE_URL_PATH": "elsewhere",
        "STREAMLIT_SERVER_PORT": "1",
        "STREAMLIT_SERVER_ADDRESS": "192.0.2.1",
        "STREAMLIT_SERVER_SSL_CERT_FILE": "no.pem",
        "STREAMLIT_GLOBAL_DEVELOPMENT_MODE": "true",
    }
    variables = {"HOME": str(tmp_path), PREFIX + "PORT": str(port), PREFIX + "HOST": "127.0.0.1"}
    path = {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.page"], env=os.environ | foreign | variables | path, cwd=tmp_path / "here"
    )
    url = f"http://127.0.0.1:{port}/_stcore/health"
    try:
        program = Program("page", (), url, fatal_statuses=(404,))
        eventually(lambda: process.poll() is not None or not unready_reason(program))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_page_imports_neither_tensorflow_nor_the_pipeline():
    program = "import sys, serving.page.settings, serving.page.photos, serving.page.views, serving.client.gateway; "
    command = [sys.executable, "-c", program + "print(*sys.modules)"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert not {"tensorflow", "grpc", "pipeline", "components"} & loaded


@pytest.mark.parametrize("name", ["*Maine* Coon", "short_hair_", "a [link](x)", "$5$ :cat: <b>`~^", "Norwegian – Ål"])
def test_a_name_is_escaped_in_markdown(name):
    assert MarkdownIt("js-default").render(escape_markdown(name)) == f"<p>{html.escape(name)}</p>\n"
