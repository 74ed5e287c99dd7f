"""From the body of a request to photos that the model can decode."""

import asyncio
import base64
import binascii
from typing import NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.gateway.problems import Problem
from serving.gateway.settings import Settings
from serving.photo import LARGE_PIXELS, PhotoError, normalise

_FORM = b"multipart/form-data"
_FIELD = "file"


class Upload(NamedTuple):
    """A photo.

    Attributes:
        name: of its file; None if it came alone, without a form.
        content: JPEG or PNG bytes once it is normalised, before that whatever was sent.
    """

    name: str | None
    content: bytes


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, as far as it may be long.

    Raises:
        Problem: it is compressed, too long, or takes too long.
        ClientDisconnect: the client went away.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"the body is encoded by {encoding[:100]!r}; send it as it is, without Content-Encoding"
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


def normalised(body: bytes, content_type: str, settings: Settings) -> list[Upload]:
    """The photos of a form, or the one that the body is; of any format, which its content tells.

    Raises:
        Problem: what cannot be used, and why.
    """
    kind, options = parse_options_header(content_type)
    uploads = _of_form(body, options.get(b"boundary"), settings) if kind == _FORM else [Upload(None, body)]
    return [Upload(name, _normalised(name, content, settings)) for name, content in uploads]


def _normalised(name: str | None, content: bytes, settings: Settings) -> bytes:
    try:
        if settings.max_pixels is None:
            return normalise(content, max_other_pixels=LARGE_PIXELS).data
        return normalise(content, max_pixels=settings.max_pixels).data
    except PhotoError as error:
        raise Problem.of_photo(error, name) from None


def _of_form(body: bytes, boundary: bytes | None, settings: Settings) -> list[Upload]:
    uploads = []
    for headers, content in _parts(body, boundary, settings.max_photos):
        _, options = parse_options_header(headers.get("content-disposition"))
        field = options.get(b"name")
        if field is None:
            raise Problem(400, "malformed_form", "the form is malformed: a part has no name")
        if field != _FIELD.encode():
            name = field.decode(errors="replace")
            raise Problem(422, "invalid_form", f"there is no field {name[:100]!r}; send photos as {_FIELD!r}")
        name = options.get(b"filename", b"").decode(errors="replace") or f"photo {len(uploads) + 1}"
        uploads.append(Upload(name, _decoded(headers.get("content-transfer-encoding", ""), content)))
    if not uploads:
        raise Problem(422, "invalid_form", f"the form has no photo; send photos as {_FIELD!r}")
    return uploads


def _parts(body: bytes, boundary: bytes | None, most: int) -> list[tuple[dict[str, str], bytes]]:
    """Headers, their names in lower case, and encoded content of each part of a form.

    Raises:
        Problem: it is malformed, cut off, or has more than `most` parts.
    """
    parts: list[tuple[dict[str, str], bytearray]] = []
    name, value, whole = bytearray(), bytearray(), False

    def begin() -> None:
        if len(parts) == most:
            raise Problem(413, "too_large", f"the request has more than {most} photos")
        parts.append(({}, bytearray()))

    def end_header() -> None:
        parts[-1][0][name.decode("latin-1").lower()] = value.decode("latin-1").strip(" \t")
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal whole
        whole = True

    callbacks = {
        "on_part_begin": begin,
        "on_header_field": lambda data, start, end: name.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": end_header,
        "on_part_data": lambda data, start, end: parts[-1][1].extend(data[start:end]),
        "on_end": end,
    }
    try:
        if not boundary:
            raise FormParserError("no boundary is given")
        MultipartParser(boundary, callbacks).write(body)
    except FormParserError as error:
        raise Problem(400, "malformed_form", f"the form is malformed: {error}") from None
    if not whole:
        raise Problem(400, "malformed_form", "the form is cut off")
    return [(headers, bytes(content)) for headers, content in parts]


def _decoded(encoding: str, content: bytes) -> bytes:
    """The content of a part; of RFC 2045's encodings all others leave it as it is."""
    encoding = encoding.lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(content)
    if encoding != "base64":
        return content
    try:
        # RFC 2045 has lines of 76 characters, and tells decoders to leave out all that is not of its alphabet.
        return base64.b64decode(content)
    except binascii.Error as error:
        raise Problem(400, "malformed_form", f"the form is malformed: {error}") from None
