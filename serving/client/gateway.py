"""Client of the gateway. It sends photos unchanged; the gateway normalizes them."""

from collections.abc import Sequence
from typing import Any

import httpx

from serving import http_client, proxies
from serving.client.answers import Answer, Model, Prediction
from serving.client.base import Client, PhotoLike, photo_names, read_photos
from serving.client.errors import (
    BadResponse,
    Busy,
    InvalidKey,
    NoSuchCapture,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
)
from serving.client.http import TIMEOUT, check_url, json_object, translate_errors, wrong_address
from serving.names import is_header_value
from serving.photo_normalization import PhotoError

_PATH = "/v1/breeds:predict"
_READY_PATH = "/readyz"
_FEEDBACK_PATH = "/v1/feedback"
_CAPTURES_PATH = "/v1/captures"
_SERVER = "a gateway"
_ALL_BREEDS = 1000  # the maximum of top_k, more than any model has


class GatewayClient(Client):
    """Client of a gateway.

    Args:
        url: Address of the gateway, `http://host:port`.
        api_key: API key, if the gateway requires one.
        timeout: Seconds for connecting, for sending, and for each wait for data.
        request_key: Key of the end user. While a canary runs, requests with the same key get the same version of the
            model. If it is None, the gateway uses the IP address of the client.

    Raises:
        WrongAddress: If the port in `url` is out of range.
        InvalidKey: If an HTTP header cannot carry a key.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = TIMEOUT, request_key: str | None = None):
        self._url = check_url(url)
        self._http = http_client.client(timeout=timeout, headers=_headers(api_key, request_key))

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        request = _request(photos, top_k)
        with translate_errors(self._url):
            response = self._http.post(self._url + _PATH, **request)
        return _answers(response, len(photos))

    def ready(self) -> Model:
        """Return the model that serves predictions.

        Raises:
            ClientError: If the gateway is not ready.
        """
        with translate_errors(self._url):
            response = self._http.get(self._url + _READY_PATH)
        return _ready_model(response)

    def give_feedback(self, token: str, breed: str) -> None:
        """Report which breed a captured photo shows. It replaces earlier feedback.

        Args:
            token: `Answer.token`.
            breed: One of the breeds of the answer, NOT_A_CAT or UNSURE.

        Raises:
            NoSuchCapture: If the gateway does not store the photo, or no longer.
            RequestRejected: If the breed is invalid.
            ClientError: If the request fails.
        """
        with translate_errors(self._url):
            response = self._http.post(self._url + _FEEDBACK_PATH, json={"token": token, "breed": breed})
        _check_success(response)

    def delete_capture(self, token: str) -> None:
        """Delete a captured photo with its answer and feedback.

        Args:
            token: `Answer.token`.

        Raises:
            NoSuchCapture: If the gateway does not store the photo, or no longer.
            ClientError: If the request fails.
        """
        with translate_errors(self._url):
            response = self._http.delete(f"{self._url}{_CAPTURES_PATH}/{token}")
        _check_success(response)

    def close(self) -> None:
        """See Client."""
        self._http.close()


def _headers(api_key: str | None, request_key: str | None) -> dict[str, str]:
    for name, key in (("API key", api_key), ("request key", request_key)):
        if key and not is_header_value(key):
            raise InvalidKey(f"the {name} has characters that an HTTP header cannot carry; use printable ASCII")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return headers | ({"X-Request-Key": request_key} if request_key else {})


def _request(photos: Sequence[PhotoLike], top_k: int | None) -> dict[str, Any]:
    files = [("file", (name, content)) for name, content in zip(photo_names(photos), read_photos(photos), strict=True)]
    return {"params": {"top_k": _ALL_BREEDS if top_k is None else top_k}, "files": files}


def _answers(response: httpx.Response, photos: int) -> list[Answer]:
    document = json_object(response, _SERVER)
    if not response.is_success:
        raise _error(response, document)
    try:
        model = _model(document)
        rows = document.get("photos", [document])
        if len(rows) != photos:
            raise ValueError(f"{len(rows)} results for {photos} photos")
        return [_answer(model, document["request_id"], row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise BadResponse(f"{response.url} is not a catbreeds gateway: {error!r}") from None


def _answer(model: Model, request_id: str, row: dict[str, Any]) -> Answer:
    # Earlier releases return neither prediction sets nor tokens.
    prediction_set, captured = row.get("prediction_set"), row.get("captured")
    return Answer(
        model,
        tuple(Prediction(**prediction) for prediction in row["predictions"]),
        request_id,
        None if prediction_set is None else tuple(prediction_set),
        row.get("unfamiliar"),
        captured and captured["token"],
    )


def _check_success(response: httpx.Response) -> None:
    if not response.is_success:
        raise _error(response, json_object(response, _SERVER))


def _model(document: dict[str, Any]) -> Model:
    return Model(document["model"]["name"], document["model"]["version"])


def _ready_model(response: httpx.Response) -> Model:
    document = json_object(response, _SERVER)
    if not response.is_success:
        raise _error(response, document)
    try:
        return _model(document)
    except (KeyError, TypeError) as error:
        raise BadResponse(f"{response.url} is not a catbreeds gateway: {error!r}") from None


def _error(response: httpx.Response, problem: dict[str, Any]) -> Exception:
    """Return the error for a response with problem details; see `serving.gateway.problems`."""
    code, reason = response.status_code, problem.get("reason")
    if reason == "no_such_capture":
        return NoSuchCapture(problem["detail"])
    # The gateway gives a reason with each error; TensorFlow Serving responds with 400 to an unknown path.
    if code in (404, 405) or (code == 400 and reason is None):
        return wrong_address(response, _SERVER)
    detail = f"{problem['photo']}: " if problem.get("photo") else ""
    via = proxies.through(str(response.url))
    detail += problem.get("detail") or f"{response.url} returned {code} {response.reason_phrase}{via}"
    if reason in PhotoError.KINDS:
        return PhotoError(reason, detail)
    if reason == "model_not_served":
        return NotServed(detail)
    if code == 503:
        wait = response.headers.get("Retry-After", "")
        kind = Busy if reason == "busy" else Unavailable
        return kind(detail, float(wait) if wait.isdigit() else None)
    if code == 504:
        return TimedOut(detail)
    return RequestRejected(detail) if code < 500 else BadResponse(detail)
