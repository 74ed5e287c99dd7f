"""Read request bodies and extract the photos, normalized for the model."""

import asyncio
import base64
import binascii
from typing import NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.gateway.problems import Problem
from serving.gateway.settings import Settings
from serving.photo_normalization import LARGE_PIXELS, PhotoError, normalize_for_prediction

_FORM = b"multipart/form-data"
_FIELD = "file"


class Upload(NamedTuple):
    """An uploaded photo.

    Attributes:
        name: Name of its file; None if the photo is the whole body.
        content: Bytes of the photo: as uploaded, or JPEG or PNG after normalization.
    """

    name: str | None
    content: bytes


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the body within the size and time limits.

    Raises:
        Problem: If the body is compressed, too large, or arrives too slowly.
        ClientDisconnect: If the client closed the connection.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"the body has Content-Encoding {encoding[:100]!r}; send it unencoded, without Content-Encoding"
        raise Problem(415, "encoded", detail, headers={"Accept-Encoding": "identity"})
    too_large = Problem(413, "too_large", f"the request has more than {settings.max_bytes:,} bytes")
    if int(request.headers.get("Content-Length", 0)) > settings.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.read_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_bytes:
                    raise too_large
    except TimeoutError:
        detail = f"the request did not arrive within {settings.read_seconds:g} s"
        raise Problem(408, "too_slow", detail, headers={"Connection": "close"}) from None
    return bytes(body)


def read_photos(body: bytes, content_type: str, settings: Settings) -> list[Upload]:
    """Return the normalized photos of a form, or the body as one photo. The content determines the image format.

    Raises:
        Problem: If the form or a photo cannot be used.
    """
    kind, options = parse_options_header(content_type)
    uploads = _parse_form(body, options.get(b"boundary"), settings) if kind == _FORM else [Upload(None, body)]
    return [Upload(name, _normalize(name, content, settings)) for name, content in uploads]


def _normalize(name: str | None, content: bytes, settings: Settings) -> bytes:
    try:
        if settings.max_pixels is None:
            return normalize_for_prediction(content, max_other_pixels=LARGE_PIXELS)
        return normalize_for_prediction(content, max_pixels=settings.max_pixels)
    except PhotoError as error:
        raise Problem.of_photo(error, name) from None


def _parse_form(body: bytes, boundary: bytes | None, settings: Settings) -> list[Upload]:
    uploads = []
    for headers, content in _split_form(body, boundary, settings.max_photos):
        _, options = parse_options_header(headers.get("content-disposition"))
        field = options.get(b"name")
        if field is None:
            raise Problem(400, "malformed_form", "the form is malformed: a part has no name")
        if field != _FIELD.encode():
            name = field.decode(errors="replace")
            raise Problem(422, "invalid_form", f"unknown field {name[:100]!r}; send photos in the field {_FIELD!r}")
        name = options.get(b"filename", b"").decode(errors="replace") or f"photo {len(uploads) + 1}"
        uploads.append(Upload(name, _decode(headers.get("content-transfer-encoding", ""), content)))
    if not uploads:
        raise Problem(422, "invalid_form", f"the form has no photo; send photos in the field {_FIELD!r}")
    return uploads


def _split_form(body: bytes, boundary: bytes | None, max_parts: int) -> list[tuple[dict[str, str], bytes]]:
    """Return the headers, with lower-case names, and the encoded content of each part of a form.

    Raises:
        Problem: If the form is malformed or truncated, or has more than `max_parts` parts.
    """
    parts: list[tuple[dict[str, str], bytearray]] = []
    name, value, complete = bytearray(), bytearray(), False

    def begin_part() -> None:
        if len(parts) == max_parts:
            raise Problem(413, "too_large", f"the request has more than {max_parts} photos")
        parts.append(({}, bytearray()))

    def end_header() -> None:
        parts[-1][0][name.decode("latin-1").lower()] = value.decode("latin-1").strip(" \t")
        name.clear()
        value.clear()

    def end_form() -> None:
        nonlocal complete
        complete = True

    callbacks = {
        "on_part_begin": begin_part,
        "on_header_field": lambda data, start, end: name.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": end_header,
        "on_part_data": lambda data, start, end: parts[-1][1].extend(data[start:end]),
        "on_end": end_form,
    }
    try:
        if not boundary:
            raise FormParserError("the Content-Type has no boundary")
        MultipartParser(boundary, callbacks).write(body)
    except FormParserError as error:
        raise Problem(400, "malformed_form", f"the form is malformed: {error}") from None
    if not complete:
        raise Problem(400, "malformed_form", "the form is truncated")
    return [(headers, bytes(content)) for headers, content in parts]


def _decode(encoding: str, content: bytes) -> bytes:
    """Decode the content of a part. RFC 2045's other encodings do not change the content."""
    encoding = encoding.lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(content)
    if encoding != "base64":
        return content
    try:
        # RFC 2045 breaks lines after 76 characters; decoders must ignore all characters outside the alphabet.
        return base64.b64decode(content)
    except binascii.Error as error:
        raise Problem(400, "malformed_form", f"the form is malformed: {error}") from None
