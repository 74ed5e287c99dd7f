"""Client of a model server's REST API.

Its predictions do not include the version of the model. The client therefore reads the current version and its
signatures from the metadata first, and then requests a prediction from exactly that version.
"""

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx

from serving import http_client
from serving.client.answers import DEFAULT_MODEL, Answer, Model, ModelChoice, answer_of
from serving.client.base import Client, PhotoLike, normalize_photos
from serving.client.errors import (
    BadResponse,
    ClientError,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
    is_unknown_label,
)
from serving.client.http import TIMEOUT, check_url, json_object, translate_errors, wrong_address
from serving.model_files import signature_to_request

_SERVER = "a model server's REST API"


class RestClient(Client):
    """Client of a model server's REST API.

    Args:
        url: Address of the model server, `http://host:port`.
        model: Model to query.
        timeout: Seconds for connecting, for sending, and for each wait for data.

    Raises:
        WrongAddress: If the port in `url` is out of range.
    """

    def __init__(self, url: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._url, self._model = check_url(url), model
        self._http = http_client.client(timeout=timeout)

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        normalized = normalize_photos(photos)
        try:
            return self._predict(normalized, top_k)
        except NotServed:  # the version may have been unloaded between the two requests
            return self._predict(normalized, top_k)

    def close(self) -> None:
        """See Client."""
        self._http.close()

    def _predict(self, photos: list[bytes], top_k: int | None) -> list[Answer]:
        instances = [{"image_bytes": {"b64": base64.b64encode(photo).decode()}} for photo in photos]
        base = f"{self._url}/v1/models/{quote(self._model.name, safe='')}"
        try:
            document = self._send("GET", f"{_versioned(base, self._model)}/metadata")
            spec, signatures = document["model_spec"], document["metadata"]["signature_def"]["signature_def"]
            model = Model(spec["name"], int(spec["version"]))
            request = {"signature_name": signature_to_request(signatures), "instances": instances}
            rows = self._send("POST", f"{base}/versions/{model.version}:predict", json=request)["predictions"]
            return [
                answer_of(model, row["breeds"], row["probabilities"], row.get("in_set"), row.get("unfamiliar"), top_k)
                for row in rows
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise BadResponse(f"{self._url} does not serve a catbreeds model: {error!r}") from None

    def _send(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        with translate_errors(self._url):
            response = self._http.request(method, url, **options)
        return _document(self._url, response)


def _versioned(base: str, model: ModelChoice) -> str:
    if model.version is not None:
        return f"{base}/versions/{model.version}"
    if model.label is not None:
        return f"{base}/labels/{quote(model.label, safe='')}"
    return base


def _document(url: str, response: httpx.Response) -> dict[str, Any]:
    document = json_object(response, _SERVER)
    if response.is_success:
        return document
    text = str(document.get("error", ""))
    # For an unknown path, TensorFlow Serving returns one of these texts; for an unknown model, it names the model.
    if text.startswith("Malformed request") or (response.status_code in (404, 405) and text in ("", "Not Found")):
        raise wrong_address(response, _SERVER)
    raise _error(url, response.status_code, text or "no reason given")


def _error(url: str, code: int, text: str) -> ClientError:
    if code == 404 or is_unknown_label(text):
        return NotServed(f"{url} does not serve the requested model: {text}")
    if code in (429, 503):
        return Unavailable(f"{url} is not available: {text}")
    if code == 504:
        return TimedOut(f"{url} did not respond in time: {text}")
    return (
        RequestRejected(f"{url} rejected the request: {text}") if code < 500 else BadResponse(f"{url} failed: {text}")
    )
