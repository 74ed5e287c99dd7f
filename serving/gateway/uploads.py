"""From the body of a request to photos that the model can decode."""

import asyncio
from typing import NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

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
        Problem: it is too long, or takes too long.
        ClientDisconnect: the client went away.
    """
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
        return normalise(content, max_pixels=settings.max_pixels).data
    except PhotoError as error:
        if settings.max_pixels is None:
            return normalise(content, max_other_pixels=LARGE_PIXELS).data
        raise Problem.of_photo(error, name) from None


def _of_form(body: bytes, boundary: bytes | None, settings: Settings) -> list[Upload]:
    uploads: list[Upload] = []
    whole = False

    def take(part: Field | File) -> None:
        if part.field_name != _FIELD.encode():
            name = part.field_name.decode(errors="replace")
            raise Problem(422, "invalid_form", f"there is no field {name[:100]!r}; send photos as {_FIELD!r}")
        if len(uploads) == settings.max_photos:
            raise Problem(413, "too_large", f"the request has more than {settings.max_photos} photos")
        name = f"photo {len(uploads) + 1}"
        if isinstance(part, File):
            name = (part.file_name or b"").decode(errors="replace") or name
            part.file_object.seek(0)
            uploads.append(Upload(name, part.file_object.read()))
        else:
            uploads.append(Upload(name, part.value or b""))

    def end() -> None:
        nonlocal whole
        whole = True

    try:
        # Nothing is written to disk: the body is in memory already.
        parser = FormParser(
            _FORM.decode(), take, take, end, boundary=boundary, config={"MAX_MEMORY_FILE_SIZE": float("inf")}
        )
        parser.write(body)
    except FormParserError as error:
        raise Problem(400, "malformed_form", f"the form is malformed: {error}") from None
    if not whole:
        raise Problem(400, "malformed_form", "the form is cut off")
    if not uploads:
        raise Problem(422, "invalid_form", f"the form has no photo; send photos as {_FIELD!r}")
    return uploads
