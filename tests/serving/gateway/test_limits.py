"""The gateway rejects invalid requests with a reason, and no input makes it fail."""

import base64
import gzip
import hashlib
import re
import socket
import struct
import zlib
from concurrent import futures
from pathlib import Path

import hypothesis
import pillow_heif
import psutil
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serving.classifier import encoded, picture
from tests.serving.gateway.gateways import PHOTOS, PREDICT, problem
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

pillow_heif.register_heif_opener()
FILES = {
    **{kind: encoded(picture(1), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "HEIF")},
    "text": b"a cat",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "TIFF": encoded(picture(1), "TIFF"),
}
MORE_EXAMPLES = hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))


def empty_png(side: int) -> bytes:
    """A small valid file with side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(9)
    content = b"".join(rows.compress(bytes(1 + (side + 7) // 8)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (b"", (400, "empty")),
        (b"not a photo", (415, "not_an_image")),
        (FILES["TIFF"], (415, "not_an_image")),
        (PHOTOS[0][:-300], (400, "damaged")),
        (encoded(Image.new("RGB", (8, 8))), (400, "too_small")),
        (empty_png(10_000), (413, "too_large")),
    ],
    ids=["empty", "text", "tiff", "truncated", "tiny", "100 megapixels"],
)
def test_an_unusable_photo_is_rejected_with_the_reason(gateway, photo, expected):
    assert problem(gateway.http.post(PREDICT, content=photo)) == expected
    response = gateway.predict(PHOTOS[0], photo)
    assert problem(response) == expected
    assert response.json()["photo"] == "1.jpg"


@pytest.mark.parametrize(
    "body", [b'{"instances": []}', b"[1]", base64.b64encode(PHOTOS[0])], ids=["object", "list", "base64"]
)
def test_json_and_base64_bodies_get_a_hint_about_the_expected_format(gateway, body):
    response = gateway.http.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
    assert problem(response) == (415, "not_an_image")
    assert response.json()["detail"].endswith("; send the bytes of the photo, or a form with the field 'file'")


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, deflate"])
def test_a_compressed_body_is_rejected(gateway, encoding):
    headers = {"Content-Encoding": encoding}
    response = gateway.http.post(PREDICT, content=gzip.compress(PHOTOS[0]), headers=headers)
    assert problem(response) == (415, "encoded")
    assert response.headers["accept-encoding"] == "identity"
    assert "send it unencoded, without Content-Encoding" in response.json()["detail"]
    assert gateway.http.post(PREDICT, content=PHOTOS[0], headers={"Content-Encoding": "identity"}).is_success


def test_the_pixel_limit_applies_before_decoding(gateway):
    process, bomb = psutil.Process(gateway.process.pid), empty_png(10_000)
    assert len(bomb) < 20_000
    before = process.memory_info().rss
    for _ in range(20):
        assert problem(gateway.http.post(PREDICT, content=bomb)) == (413, "too_large")
    assert process.memory_info().rss - before < 50e6  # decoded, one takes 100 MB


PHONE, LARGE = (5712, 4284), (8192, 6144)
# Image.new("RGB", LARGE, "white") as pillow_heif encodes it; stored because encoding takes a minute.
WHITE_HEIC = gzip.decompress((Path(__file__).parents[1] / "white_8192x6144.heic.gz").read_bytes())


def white(size: tuple[int, int], kind: str, mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.new(mode, size, "white"), kind, **options)


def test_phone_photos_are_predicted_within_bounded_memory(start_gateway, model_server):
    gateway = start_gateway(model_server.port, deadline_seconds=DEADLINE)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°
    photos = {
        "phone": white(PHONE, "JPEG"),
        "turned": white(PHONE, "JPEG", exif=exif.tobytes()),
        "JPEG": white(LARGE, "JPEG"),
        "progressive": white(LARGE, "JPEG", progressive=True, subsampling=0),
        "gray": white(LARGE, "JPEG", mode="L"),
        "HEIC": WHITE_HEIC,
    }
    for name, photo in photos.items():
        assert (name, gateway.http.post(PREDICT, content=photo).status_code) == (name, 200)
    with futures.ThreadPoolExecutor(4) as clients:  # more concurrent requests than decoders
        codes = clients.map(lambda photo: gateway.predict(photo).status_code, [WHITE_HEIC, *photos.values()])
        assert set(codes) == {200}
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{gateway.process.pid}/status").read_text())
    assert int(peak[1]) * 1024 < 800e6  # one HEIC takes 365 MB, two concurrent ones twice that


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "1"), ("WEBP", "RGB"), ("GIF", "L"), ("BMP", "1")], ids=["PNG", "WebP", "GIF", "BMP"]
)
def test_other_formats_have_a_lower_limit(gateway, kind, mode):
    response = gateway.http.post(PREDICT, content=white((5000, 4801), kind, mode))
    assert problem(response) == (413, "too_large")
    assert "5000 x 4801 pixels are more than the limit of 24,000,000" in response.json()["detail"]


def test_a_configured_pixel_limit_applies_to_all_formats(start_gateway, model_server):
    gateway = start_gateway(model_server.port, max_pixels=1_000_000)
    for kind in ("JPEG", "HEIF", "PNG"):
        assert problem(gateway.http.post(PREDICT, content=white((1001, 1000), kind))) == (413, "too_large")
    gateway = start_gateway(model_server.port, max_pixels=30_000_000)
    assert gateway.http.post(PREDICT, content=white((5000, 4801), "PNG", "1")).status_code == 200
    assert problem(gateway.http.post(PREDICT, content=white(LARGE, "JPEG"))) == (413, "too_large")


def test_the_size_limit_applies_while_the_body_arrives(start_gateway, model_server):
    gateway = start_gateway(model_server.port, max_bytes=100_000)
    assert problem(gateway.http.post(PREDICT, content=bytes(100_001))) == (413, "too_large")
    with socket.create_connection(("localhost", gateway.port), DEADLINE) as connection:
        # A chunked body, which has no declared length and never ends.
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(11):
            connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_an_invalid_form_is_rejected_with_the_reason(gateway):
    for files, expected in (
        ({"photo": PHOTOS[0]}, (422, "invalid_form")),
        ([("file", PHOTOS[0])] * 17, (413, "too_large")),
    ):
        assert problem(gateway.http.post(PREDICT, files=files)) == expected
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for body, expected in (
        (b"--b--\r\n", (422, "invalid_form")),
        (b"nonsense", (400, "malformed_form")),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc', (400, "malformed_form")),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--b--\r\n", (400, "malformed_form")),
        (b"--b\r\n\r\nabc\r\n--b--\r\n", (400, "malformed_form")),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
            b"abcde\r\n--b--\r\n",
            (400, "malformed_form"),
        ),
    ):
        assert problem(gateway.http.post(PREDICT, content=body, headers=headers)) == expected
    assert problem(gateway.http.post(PREDICT, content=b"", headers={"Content-Type": "multipart/form-data"}))[0] == 400


def test_requests_above_the_concurrency_limit_get_retry_after(start_gateway, model_server):
    gateway = start_gateway(model_server.port, max_in_flight=1)
    with socket.create_connection(("localhost", gateway.port), DEADLINE) as slow:
        slow.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTOS[0])}\r\n\r\n".encode())
        eventually(lambda: gateway.metric("catbreeds_gateway_in_flight") == 1)
        response = gateway.predict(PHOTOS[0])
        assert problem(response) == (503, "busy")
        assert int(response.headers["retry-after"]) > 0
        slow.sendall(PHOTOS[0])
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 ")
    eventually(lambda: gateway.predict(PHOTOS[0]).status_code == 200)


def test_a_slow_upload_is_rejected(start_gateway, model_server):
    gateway = start_gateway(model_server.port, read_seconds=0.2)
    with socket.create_connection(("localhost", gateway.port), DEADLINE) as slow:
        slow.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_without_a_model_server_errors_arrive_within_the_deadline(start_gateway):
    gateway = start_gateway(free_port(), deadline_seconds=1)
    unavailable = {(503, "model_server_unavailable"), (504, "timed_out")}
    assert problem(gateway.predict(PHOTOS[0])) in unavailable
    with socket.create_server(("localhost", 0)) as silent:
        gateway = start_gateway(silent.getsockname()[1], deadline_seconds=1)
        assert problem(gateway.predict(PHOTOS[0])) in unavailable
        assert problem(gateway.http.get("/readyz"))[0] in (503, 504)
        assert gateway.http.get("/healthz").is_success


def test_an_api_key_is_required_if_keys_are_configured(start_gateway, model_server):
    digest = hashlib.sha256(b"open sesame").hexdigest()
    gateway = start_gateway(model_server.port, api_keys=digest)
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Bearer {digest}"}):
        response = gateway.predict(PHOTOS[0], headers=headers)
        assert problem(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert gateway.predict(PHOTOS[0], headers={"Authorization": "Bearer open sesame"}).is_success
    assert gateway.http.get("/readyz").is_success  # probes send no key
    assert digest not in gateway.log.read_text()


def test_a_broken_photo_does_not_affect_other_requests(gateway):
    with futures.ThreadPoolExecutor(16) as clients:
        codes = list(
            clients.map(lambda n: gateway.predict(PHOTOS[n % 4] if n % 2 else PHOTOS[0][:-300]).status_code, range(64))
        )
    assert codes == [400, 200] * 32


@MORE_EXAMPLES
@hypothesis.given(
    name=st.sampled_from(sorted(FILES)),
    other=st.sampled_from(sorted(FILES)),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    form=st.booleans(),
)
def test_arbitrary_bytes_never_cause_a_server_error(gateway, name, other, cut, flips, form):
    head, tail = FILES[name], FILES[other]
    data = bytearray(head[: int(cut[0] * len(head))] + tail[int(cut[1] * len(tail)) :])
    for at, value in flips:
        if data:
            data[int(at * (len(data) - 1))] = value
    response = gateway.predict(bytes(data)) if form else gateway.http.post(PREDICT, content=bytes(data))
    if response.status_code == 200:
        assert response.json()["predictions"]
    else:
        assert problem(response)[0] in (400, 413, 415)


def test_responses_to_generated_requests_match_the_openapi_schema(gateway):
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")

    for result in schema.get_all_operations():
        operation = result.ok()

        @MORE_EXAMPLES
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            response = case.call(timeout=DEADLINE)
            assert response.status_code < 500, response.text
            # A schema cannot define which bytes are a photo.
            case.validate_response(response, excluded_checks=[positive_data_acceptance])

        check()
