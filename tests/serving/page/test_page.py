"""What the page says: to a photo, without one, and when something behind it is missing."""

import html
import json
import os
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

from serving.local.processes import Program, unready_reason
from serving.page.text import plain
from tests.serving.classifier import BREEDS, encoded
from tests.serving.gateway.gateways import PHOTOS, Gateway
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

APP = Path(__file__).parents[3] / "serving" / "page" / "app.py"
PREFIX = "CATBREEDS_PAGE_"


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory) -> Iterator[Gateway]:
    """Asks the model server that has versions 1 and 2."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), model_server.port)
    yield gateway
    gateway.stop()


@pytest.fixture
def visit(monkeypatch) -> Callable[..., AppTest]:
    """Opens the page with these settings."""

    def visit(**settings: object) -> AppTest:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(PREFIX + name.upper(), str(value))
        return checked(AppTest.from_file(str(APP), default_timeout=DEADLINE).run())

    return visit


def checked(page: AppTest) -> AppTest:
    assert not page.exception, page.exception
    return page


def show(page: AppTest, photo: bytes, name: str = "cat.jpg") -> AppTest:
    page.get("file_uploader")[0].upload(name, photo)
    return checked(page.run())


def test_a_photo_gets_its_breed_all_probabilities_and_the_model_that_said_so(visit, gateway):
    expected = gateway.predict(PHOTOS[1]).json()["predictions"]
    page = show(visit(gateway=gateway.url), PHOTOS[1])
    assert page.subheader[0].value == f"{BREEDS[1]}, {expected[0]['probability']:.0%}"
    table = page.table[0].value
    assert list(table["Breed"]) == [row["breed"] for row in expected]
    assert list(table["Probability"]) == [f"{row['probability']:.1%}" for row in expected]
    bars = json.loads(page.get("vega_lite_chart")[0].proto.spec)["description"]
    assert all(f"{row['breed']} {row['probability']:.0%}" in bars for row in expected)
    assert "Model catbreeds, version 2." in page.caption[0].value
    assert not page.error


def test_another_photo_gets_another_answer(visit, gateway):
    page = visit(gateway=gateway.url)
    for photo, breed in zip(PHOTOS, BREEDS, strict=True):
        assert show(page, photo).subheader[0].value.replace("\\", "").startswith(breed)


def test_a_visitor_stays_with_a_version_and_another_may_get_the_canary(visit):
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
                show(page, photo)
        server.shutdown()
    first, second, third, fourth = keys
    assert first == second
    assert third == fourth
    assert first != third
    assert None not in keys


def test_a_model_that_is_unsure_is_said_to_be_and_no_other(visit, gateway):
    grey = Image.new("RGB", (64, 64), "grey")  # each of the four breeds is as probable
    page = show(visit(gateway=gateway.url), encoded(grey))
    assert "The model is unsure." in page.warning[0].value
    assert "25%" in page.warning[0].value
    sharp = Image.new("RGB", (64, 64))
    sharp.paste("white", (0, 0, 32, 32))
    assert not show(page, encoded(sharp)).warning


def test_without_a_photo_the_page_asks_for_one_and_names_the_model(visit, gateway):
    page = visit(gateway=gateway.url)
    assert "No photo yet." in page.info[0].value
    assert page.caption[0].value == "Model catbreeds, version 2, is ready."


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.jpg", b"no photo", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image"),
        ("cut.jpg", PHOTOS[0][: len(PHOTOS[0]) // 2], "the image is damaged or cut off"),
        ("tiny.png", encoded(Image.new("RGB", (4, 4)), "PNG"), "the shorter side needs at least 32"),
    ],
)
def test_a_photo_that_is_refused_is_told_the_reason(visit, gateway, name, content, reason):
    page = show(visit(gateway=gateway.url), content, name)
    assert page.error[0].value.replace("\\", "").startswith("**This photo was refused:** ")
    assert reason in page.error[0].value.replace("\\", "")
    assert "photo 1" not in page.error[0].value
    assert not page.subheader


@pytest.mark.parametrize(
    "name", ["cat.jfif", "cat.JPE", "cat.hif", "cat.pjpeg", "IMG_0815", "cat.jpg.download", ".jpg"]
)
def test_a_photo_is_known_by_its_content_whatever_its_name(visit, gateway, name):
    page = visit(gateway=gateway.url)
    assert not page.get("file_uploader")[0].proto.type
    assert show(page, PHOTOS[1], name).subheader[0].value.startswith(BREEDS[1])


def test_a_gateway_that_is_down_is_said_so_with_and_without_a_photo(visit):
    page = visit(gateway=f"http://localhost:{free_port()}")
    for visited in (page, show(page, PHOTOS[0])):
        assert "The gateway does not answer." in visited.error[0].value
        assert visited.button[0].label == "Try again"


@pytest.mark.parametrize("missing", ["model", "model server"])
def test_a_gateway_without_a_model_is_told_from_one_that_is_down(visit, model_server, tmp_path, missing):
    if missing == "model":
        gateway = Gateway(tmp_path, model_server.port, model_label="canary")
    else:
        gateway = Gateway(tmp_path, free_port())
    try:
        page = show(visit(gateway=gateway.url), PHOTOS[0])
        assert page.error[0].value.startswith("**No model is ready.** The gateway answers")
    finally:
        gateway.stop()


def test_samples_are_offered_under_the_names_of_their_folders(visit, gateway, tmp_path):
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
    assert any("damaged" in caption.value and "cannot be shown" in caption.value for caption in page.caption)
    button = next(button for button in page.button if button.label == BREEDS[2])
    assert checked(button.click().run()).subheader[0].value.startswith(BREEDS[2])


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("GATEWAY", "http://http://gateway:8000/predict/predict", "the address of the gateway alone, http://HOST:PORT"),
        ("GATEWAY", "http://gateway:8000/predict", "the address of the gateway alone, http://HOST:PORT"),
        ("GATEWAY", "http://{GATEWAY}", "the address of the gateway alone, http://HOST:PORT"),
        ("GATEWAY", "gateway:8000", "the address of the gateway alone, http://HOST:PORT"),
        ("GATEWAY", "http://gateway:", "the port is missing"),
        ("GATEWAY", "http://gateway:many", "Port could not be cast"),
        ("SAMPLES", "/nowhere/at/all", "there is no such folder"),
        ("GATEWAI", "http://gateway:8000", "no such setting; there are CATBREEDS_PAGE_GATEWAY"),
    ],
)
def test_an_impossible_setting_is_refused_by_name_before_anything_starts(variable, value, says):
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
    assert says in process.stderr


def test_settings_of_other_streamlit_projects_do_not_change_where_the_page_is(tmp_path):
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


def test_the_page_brings_neither_tensorflow_nor_the_pipeline():
    program = "import sys, serving.page.settings, serving.page.photos, serving.page.views, serving.client.gateway; "
    command = [sys.executable, "-c", program + "print(*sys.modules)"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert not {"tensorflow", "grpc", "pipeline", "components"} & loaded


@pytest.mark.parametrize("name", ["*Maine* Coon", "short_hair_", "a [link](x)", "$5$ :cat: <b>`~^", "Norwegian – Ål"])
def test_a_name_is_shown_as_it_is(name):
    assert MarkdownIt("js-default").render(plain(name)) == f"<p>{html.escape(name)}</p>\n"
