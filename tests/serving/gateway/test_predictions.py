"""Predictions of the gateway."""

import base64
import quopri

import pytest
from PIL import Image

from serving.client.gateway import GatewayClient
from serving.client.grpc import GrpcClient
from tests.serving.classifier import BREEDS, encoded, one_white_quarter, picture, plain
from tests.serving.gateway.gateways import PHOTOS, PREDICT, problem


def test_a_prediction_lists_the_breeds_most_probable_first(gateway):
    for photo, breed in zip(PHOTOS, BREEDS, strict=True):
        response = gateway.predict(photo)
        assert response.status_code == 200
        document = response.json()
        assert document.keys() == {"model", "predictions", "prediction_set", "unfamiliar", "request_id"}
        assert document["model"] == {"name": "catbreeds", "version": 2}
        assert document["request_id"] == response.headers["x-request-id"]
        assert document["predictions"][0]["breed"] == breed
        probabilities = [prediction["probability"] for prediction in document["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


def test_a_raw_body_is_a_photo_regardless_of_its_content_type(gateway):
    for kind in ("image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "nonsense"):
        response = gateway.http.post(PREDICT, content=PHOTOS[1], headers={"Content-Type": kind})
        assert response.json()["predictions"][0]["breed"] == BREEDS[1]
    assert gateway.http.post(PREDICT, content=PHOTOS[1]).is_success  # without a content type


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("base64", base64.b64encode),
        ("BASE64", base64.encodebytes),
        ("base64", lambda photo: base64.encodebytes(photo).replace(b"\n", b"\r\n")),
        ("base64", lambda photo: b" " + base64.b64encode(photo)[:-3] + b"\r\n\r\n" + base64.b64encode(photo)[-3:]),
        ("quoted-printable", lambda photo: quopri.encodestring(photo).replace(b"\n", b"\r\n")),
        ("binary", bytes),
        ("8bit", bytes),
    ],
)
@pytest.mark.parametrize("file_name", ['; filename="a.jpg"', ""])
def test_the_parts_of_a_form_can_be_encoded(gateway, encoding, encode, file_name):
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="file"%s\r\ncontent-transfer-encoding: %s\r\n\r\n%s\r\n'
        % (file_name.encode(), encoding.encode(), encode(photo))
        for photo in PHOTOS[1:3]
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = gateway.http.post(PREDICT, content=b"".join(parts) + b"--b--\r\n", headers=headers)
    assert response.status_code == 200, response.text
    assert [photo["predictions"][0]["breed"] for photo in response.json()["photos"]] == BREEDS[1:3]


def test_several_photos_get_predictions_in_the_order_of_the_request(gateway):
    document = gateway.predict(*PHOTOS[::-1]).json()
    assert document.keys() == {"model", "photos", "request_id"}
    assert [photo["photo"] for photo in document["photos"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [photo["predictions"][0]["breed"] for photo in document["photos"]] == BREEDS[::-1]


def test_top_k_limits_the_breeds(gateway):
    for top_k, breeds in ((1, 1), (3, 3), (1000, 4)):
        predictions = gateway.predict(PHOTOS[0], params={"top_k": top_k}).json()["predictions"]
        assert len(predictions) == breeds
    for wrong in ("0", "-1", "1001", "many", "1.5", ""):
        assert problem(gateway.predict(PHOTOS[0], params={"top_k": wrong})) == (422, "invalid_parameter")


def test_a_prediction_has_the_breeds_that_the_photo_may_show_and_a_flag(gateway, start_gateway, model_server):
    photos = [encoded(one_white_quarter()), encoded(plain("gray")), encoded(plain("white"))]
    clear, unsure, white = gateway.predict(*photos, params={"top_k": 1}).json()["photos"]
    assert (clear["prediction_set"], clear["unfamiliar"]) == ([BREEDS[0]], False)
    assert (set(unsure["prediction_set"]), unsure["unfamiliar"]) == (set(BREEDS), False)
    assert white["unfamiliar"] is True
    assert gateway.predict(photos[0]).json()["prediction_set"] == [BREEDS[0]]
    with GatewayClient(gateway.url) as client:
        assert client.predict(photos[1]).prediction_set == tuple(unsure["prediction_set"])
    old = start_gateway(model_server.port, model_label="stable").predict(photos[1]).json()
    assert (old["model"]["version"], old["prediction_set"], old["unfamiliar"]) == (1, None, None)


def test_an_unknown_parameter_is_rejected_by_name(gateway):
    for path, name, supported in (
        (PREDICT, "topk", "supported: top_k"),
        ("/predict", "top_k", "this endpoint has no parameters"),
    ):
        response = gateway.predict(PHOTOS[0], path=path, params={name: 1})
        assert problem(response) == (422, "invalid_parameter")
        assert response.json()["detail"] == f"{name}: unknown query parameter; {supported}"


def test_the_predict_endpoint_returns_probabilities_by_breed(gateway):
    document = gateway.predict(PHOTOS[3], path="/predict").json()
    assert next(iter(document)) == BREEDS[3]
    assert document.keys() == set(BREEDS)
    assert sum(document.values()) == pytest.approx(1)
    assert problem(gateway.predict(*PHOTOS, path="/predict")) == (422, "invalid_form")


def test_rotated_and_resized_copies_of_a_photo_get_the_same_prediction(gateway, model_server):
    original = picture(1, 1600, 1200)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate clockwise
    copies = [
        encoded(original),
        encoded(original.transpose(Image.Transpose.ROTATE_90), exif=turned.tobytes()),
        encoded(original.resize((4000, 3000))),
        encoded(original.resize((512, 384))),
    ]
    for client in (GatewayClient(gateway.url), GrpcClient(f"localhost:{model_server.port}")):
        with client:
            predictions = [{row.breed: row.probability for row in client.predict(copy).predictions} for copy in copies]
        assert max(predictions[0], key=predictions[0].get) == BREEDS[1]
        for prediction in predictions:
            assert prediction == pytest.approx(predictions[0], abs=0.02)
