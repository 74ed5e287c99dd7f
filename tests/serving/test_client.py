"""The clients return the same predictions and raise the same errors over every protocol."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image

from serving.client import Client, ModelChoice, NotServed, Unavailable
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from serving.client.rest import RestClient
from serving.photo_normalization import PhotoError
from tests.serving.classifier import BREEDS, SET_THRESHOLD, Classifier, encoded, one_white_quarter, picture, plain
from tests.serving.model_server.servers import ModelServer, eventually, free_port

PHOTOS = [encoded(picture(quarter)) for quarter in range(4)]
CLEAR, UNSURE, WHITE = encoded(one_white_quarter()), encoded(plain("gray")), encoded(plain("white"))


class BlockingGrpcClient(Client):
    """An AsyncGrpcClient with the synchronous interface, so that the same tests cover both."""

    def __init__(self, *args, **options):
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._create(*args, **options))

    async def _create(self, *args, **options):
        return AsyncGrpcClient(*args, **options)

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


CLIENTS = {
    "grpc": (grpc_address, GrpcClient),
    "async grpc": (grpc_address, BlockingGrpcClient),
    "rest": (rest_address, RestClient),
}


@pytest.fixture(params=CLIENTS)
def connect(request, model_server) -> Callable[..., Client]:
    """Create clients that connect to the model server without a gateway."""
    address, create = CLIENTS[request.param]
    return lambda *args, **options: create(address(model_server), *args, **options)


def test_the_default_version_predicts_unless_another_is_selected(connect):
    with connect() as client:
        results = client.predict_many(PHOTOS)
    assert [result.best.breed for result in results] == BREEDS
    assert {(result.model.name, result.model.version) for result in results} == {("catbreeds", 2)}
    for result in results:
        probabilities = [prediction.probability for prediction in result.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert {prediction.breed for prediction in result.predictions} == set(BREEDS)


def test_a_version_or_a_label_selects_the_model(connect):
    for choice, version in (({"version": 1}, 1), ({"version": 2}, 2), ({"label": "stable"}, 1)):
        with connect(ModelChoice(**choice)) as client:
            assert client.predict(PHOTOS[0]).model.version == version
    with pytest.raises(ValueError, match="not both"):
        ModelChoice(version=1, label="stable")


@pytest.mark.parametrize("choice", [{"name": "dogbreeds"}, {"version": 9}, {"label": "canary"}], ids=str)
def test_a_model_that_is_not_served_raises_not_served(connect, choice):
    with connect(ModelChoice(**choice)) as client, pytest.raises(NotServed, match=str(next(iter(choice.values())))):
        client.predict(PHOTOS[0])


def test_top_k_limits_the_breeds_and_a_photo_can_be_given_as_a_path(connect, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(picture(2), "PNG"))
    with connect() as client:
        result = client.predict(tmp_path / "photo.png", top_k=2)
    assert len(result.predictions) == 2
    assert result.best.breed == BREEDS[2]


def test_a_version_with_the_signature_explain_returns_a_prediction_set_and_a_flag(connect):
    with connect(ModelChoice(version=2)) as client:
        clear, unsure, white = client.predict_many([CLEAR, UNSURE, WHITE], top_k=1)
    assert (clear.prediction_set, clear.unfamiliar) == ((BREEDS[0],), False)
    assert (set(unsure.prediction_set), unsure.unfamiliar) == (set(BREEDS), False)
    assert white.unfamiliar
    with connect(ModelChoice(version=1)) as client:
        answer = client.predict(UNSURE)
    assert (answer.prediction_set, answer.unfamiliar) == (None, None)


def test_the_breeds_of_a_prediction_set_are_sorted_by_probability(connect):
    with connect() as client:
        for photo in PHOTOS:
            answer = client.predict(photo)
            expected = [row.breed for row in answer.predictions if row.probability >= SET_THRESHOLD]
            assert list(answer.prediction_set) == (expected or [answer.best.breed])


def test_a_label_can_move_between_versions_with_and_without_prediction_sets(connect, model_server, classifier):
    model_server.configure("catbreeds", classifier, "all {}", {"stable": 1})
    model_server.configure("moving", classifier, "all {}")
    try:
        eventually(lambda: model_server.available("moving") == {1, 2})
        with connect(ModelChoice("moving", label="live")) as client:
            for version in (2, 1, 2, 1):
                model_server.configure("moving", classifier, "all {}", {"live": version})
                # The client may notice only from the first answer that the label moved.
                answers = [client.predict(PHOTOS[0]) for _ in range(3)]
                assert [answer.model.version for answer in answers] == [version] * 3
                assert [answer.prediction_set is None for answer in answers[1:]] == [version == 1] * 2
    finally:
        model_server.remove("moving")


def test_a_label_can_move_between_versions_with_and_without_calibration(connect, model_server, tmp_path):
    Classifier().save(tmp_path / "1", calibrated=False)
    Classifier().save(tmp_path / "2")
    model_server.configure("calibrated", tmp_path, "all {}")
    try:
        eventually(lambda: model_server.available("calibrated") == {1, 2})
        with connect(ModelChoice("calibrated", label="live")) as client:
            for version in (2, 1, 2, 1):
                model_server.configure("calibrated", tmp_path, "all {}", {"live": version})
                # The client may notice only from the first answer that the label moved.
                answers = [client.predict(PHOTOS[0]) for _ in range(3)]
                assert [answer.model.version for answer in answers] == [version] * 3
                assert [answer.prediction_set is None for answer in answers[1:]] == [version == 1] * 2
    finally:
        model_server.remove("calibrated")


def test_a_photo_is_normalized_before_it_is_sent(connect):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°
    with connect() as client:
        for photo in (
            encoded(picture(1), "WEBP", quality=90),
            encoded(picture(1).transpose(Image.Transpose.ROTATE_90), exif=exif),
        ):
            assert client.predict(photo).best.breed == BREEDS[1]


def test_an_unusable_photo_is_reported_and_not_sent(connect, tmp_path):
    (tmp_path / "notes.txt").write_text("not a photo")
    with connect() as client:
        with pytest.raises(PhotoError, match=r"notes.txt: not a JPEG") as caught:
            client.predict_many([PHOTOS[0], tmp_path / "notes.txt"])
        assert caught.value.kind == "not_an_image"
        with pytest.raises(PhotoError, match="photo 2: the file is empty"):
            client.predict_many([PHOTOS[0], b""])
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("protocol", CLIENTS)
def test_an_unreachable_server_raises_unavailable(protocol):
    address = f"localhost:{free_port()}"
    with (
        CLIENTS[protocol][1](address if "grpc" in protocol else f"http://{address}") as client,
        pytest.raises(Unavailable),
    ):
        client.predict(PHOTOS[0])


@pytest.mark.parametrize(("module", "absent"), [("grpc", "httpx"), ("rest", "grpc"), ("gateway", "grpc")])
def test_a_client_imports_only_the_packages_it_needs(module, absent):
    program = f"import sys, serving.client.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "numpy", "pipeline", "pydantic", absent} & set(loaded)
