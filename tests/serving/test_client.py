"""The client: the same answers and errors whichever way a photo goes."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image

from serving.client import AsyncClient, Client, ModelChoice, NotServed, Unavailable
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from serving.client.rest import AsyncRestClient, RestClient
from serving.photo import PhotoError
from tests.serving.classifier import BREEDS, encoded, picture
from tests.serving.model_server.servers import ModelServer, free_port

PHOTOS = [encoded(picture(quarter)) for quarter in range(4)]


class Waiting(Client):
    """An asynchronous client as a synchronous one, so that a test needs to be written but once."""

    def __init__(self, make: Callable[[], AsyncClient]):
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(make))

    async def _made(self, make):
        return make()

    def predict(self, photo, top_k=None):
        return self._runner.run(self._client.predict(photo, top_k))

    def predict_many(self, photos, top_k=None):
        return self._runner.run(self._client.predict_many(photos, top_k))

    def close(self):
        self._runner.run(self._client.close())
        self._runner.close()


def grpc_address(server: ModelServer) -> str:
    return f"localhost:{server.port}"


def rest_address(server: ModelServer) -> str:
    return f"http://localhost:{server.rest_port}"


DIRECT = {
    "grpc": (grpc_address, GrpcClient),
    "async grpc": (grpc_address, lambda *args, **options: Waiting(lambda: AsyncGrpcClient(*args, **options))),
    "rest": (rest_address, RestClient),
    "async rest": (rest_address, lambda *args, **options: Waiting(lambda: AsyncRestClient(*args, **options))),
}


@pytest.fixture(params=DIRECT)
def direct(request, model_server) -> Callable[..., Client]:
    """Makes clients that ask the model server itself."""
    address, make = DIRECT[request.param]
    return lambda *args, **options: make(address(model_server), *args, **options)


def test_the_model_server_is_asked_for_what_it_serves_by_default(direct):
    with direct() as client:
        answers = client.predict_many(PHOTOS)
    assert [answer.best.breed for answer in answers] == BREEDS
    assert {(answer.model.name, answer.model.version) for answer in answers} == {("catbreeds", 2)}
    for answer in answers:
        probabilities = [prediction.probability for prediction in answer.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert {prediction.breed for prediction in answer.predictions} == set(BREEDS)


def test_a_version_or_a_label_chooses_the_model(direct):
    for choice, version in (({"version": 1}, 1), ({"version": 2}, 2), ({"label": "stable"}, 1)):
        with direct(ModelChoice(**choice)) as client:
            assert client.predict(PHOTOS[0]).model.version == version
    with pytest.raises(ValueError, match="not both"):
        ModelChoice(version=1, label="stable")


@pytest.mark.parametrize("choice", [{"name": "dogbreeds"}, {"version": 9}, {"label": "canary"}], ids=str)
def test_what_is_not_served_is_said_so(direct, choice):
    with direct(ModelChoice(**choice)) as client, pytest.raises(NotServed, match=str(next(iter(choice.values())))):
        client.predict(PHOTOS[0])


def test_top_k_limits_the_answer_and_a_path_is_read(direct, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(picture(2), "PNG"))
    with direct() as client:
        answer = client.predict(tmp_path / "photo.png", top_k=2)
    assert len(answer.predictions) == 2
    assert answer.best.breed == BREEDS[2]


def test_a_photo_is_normalised_before_it_is_sent(direct):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    with direct() as client:
        for photo in (
            encoded(picture(1), "WEBP", quality=90),
            encoded(picture(1).transpose(Image.Transpose.ROTATE_90), exif=exif),
        ):
            assert client.predict(photo).best.breed == BREEDS[1]


def test_a_bad_photo_is_named_and_not_sent(direct, tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with direct() as client:
        with pytest.raises(PhotoError, match=r"notes.txt: not a JPEG") as caught:
            client.predict_many([PHOTOS[0], tmp_path / "notes.txt"])
        assert caught.value.kind == "not_an_image"
        with pytest.raises(PhotoError, match="photo 2: the file is empty"):
            client.predict_many([PHOTOS[0], b""])
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("way", DIRECT)
def test_a_server_that_is_not_there_is_unavailable(way):
    address = f"localhost:{free_port()}"
    with DIRECT[way][1](address if "grpc" in way else f"http://{address}") as client, pytest.raises(Unavailable):
        client.predict(PHOTOS[0])


@pytest.mark.parametrize(("module", "absent"), [("grpc", "httpx"), ("rest", "grpc"), ("gateway", "grpc")])
def test_a_client_brings_only_what_it_needs(module, absent):
    program = f"import sys, serving.client.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "numpy", "pipeline", "pydantic", absent} & set(loaded)
