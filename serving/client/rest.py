"""The model server's REST.

Its answers do not tell which version gave them. So each request first asks which version it would get, and then for
the answer of that very version.
"""

import asyncio
import base64
from collections.abc import Generator, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from serving import http_client
from serving.client.answers import DEFAULT_MODEL, Answer, Model, ModelChoice, rank
from serving.client.base import AsyncClient, Client, PhotoLike, normalise_photos
from serving.client.errors import (
    BadResponse,
    ClientError,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
    is_unknown_label,
)
from serving.client.http import TIMEOUT, checked, errors_told, json_of, wrong_address

_SERVER = "a model server's REST"
_Conversation = Generator[httpx.Request, httpx.Response, list[Answer]]


class RestClient(Client):
    """Asks a model server.

    Args:
        url: `http://host:port`.
        model: which is asked.
        timeout: seconds for connecting, sending and each wait for data.
    """

    def __init__(self, url: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._url, self._asked = checked(url), model
        self._http = http_client.client(timeout=timeout)

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        conversation = _conversation(self._url, self._asked, normalise_photos(photos), top_k)
        with errors_told(self._url):
            request = next(conversation)
            while True:
                try:
                    request = conversation.send(self._http.send(request))
                except StopIteration as end:
                    return end.value

    def close(self) -> None:
        """See Client."""
        self._http.close()


class AsyncRestClient(AsyncClient):
    """As RestClient, for asyncio."""

    def __init__(self, url: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._url, self._asked = checked(url), model
        self._http = http_client.async_client(timeout=timeout)

    async def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See AsyncClient."""
        conversation = _conversation(self._url, self._asked, await asyncio.to_thread(normalise_photos, photos), top_k)
        with errors_told(self._url):
            request = next(conversation)
            while True:
                try:
                    request = conversation.send(await self._http.send(request))
                except StopIteration as end:
                    return end.value

    async def close(self) -> None:
        """See AsyncClient."""
        await self._http.aclose()


def _conversation(url: str, asked: ModelChoice, photos: list[bytes], top_k: int | None) -> _Conversation:
    """Yields requests, is sent their responses, and returns the answers.

    Raises:
        ClientError: there are none.
    """
    base = f"{url}/v1/models/{quote(asked.name, safe='')}"
    which = base
    if asked.version is not None:
        which = f"{base}/versions/{asked.version}"
    elif asked.label is not None:
        which = f"{base}/labels/{quote(asked.label, safe='')}"
    instances = [{"image_bytes": {"b64": base64.b64encode(photo).decode()}} for photo in photos]
    for last in (False, True):
        try:
            spec = _document(url, (yield httpx.Request("GET", f"{which}/metadata")))["model_spec"]
            model = Model(spec["name"], int(spec["version"]))
            request = httpx.Request("POST", f"{base}/versions/{model.version}:predict", json={"instances": instances})
            rows = _document(url, (yield request))["predictions"]
            return [Answer(model, rank(row["breeds"], row["probabilities"], top_k)) for row in rows]
        except NotServed:  # it may have been replaced in between
            if last:
                raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadResponse(f"{url} serves no breed classifier of ours: {error!r}") from None


def _document(url: str, response: httpx.Response) -> dict[str, Any]:
    document = json_of(response, _SERVER)
    if response.is_success:
        return document
    text = str(document.get("error", ""))
    # TensorFlow Serving names what is not served; only of a path that it does not know it says this, or nothing.
    if text.startswith("Malformed request") or (response.status_code in (404, 405) and text in ("", "Not Found")):
        raise wrong_address(response, _SERVER)
    raise _error(url, response.status_code, text or "no reason given")


def _error(url: str, code: int, text: str) -> ClientError:
    if code == 404 or is_unknown_label(text):
        return NotServed(f"{url} does not serve that: {text}")
    if code in (429, 503):
        return Unavailable(f"{url} is not available: {text}")
    if code == 504:
        return TimedOut(f"{url} did not answer in time: {text}")
    return RequestRejected(f"{url} refuses the request: {text}") if code < 500 else BadResponse(f"{url} failed: {text}")
