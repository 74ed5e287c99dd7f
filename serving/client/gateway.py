"""Our gateway: photos go as they are, it normalises them."""

from collections.abc import Sequence
from typing import Any

import httpx

from serving import http_client, proxies
from serving.client.answers import Answer, Model, Prediction
from serving.client.base import AsyncClient, Client, PhotoLike, names, read
from serving.client.errors import BadResponse, Busy, InvalidKey, NotServed, RequestRejected, TimedOut, Unavailable
from serving.client.http import TIMEOUT, checked, errors_told, json_of, wrong_address
from serving.names import is_header_value
from serving.photo import PhotoError

_PATH = "/v1/breeds:predict"
_READY_PATH = "/readyz"
_SERVER = "a gateway"
# More than any model knows.
_ALL = 1000


class GatewayClient(Client):
    """Asks a gateway.

    Args:
        url: `http://host:port`.
        api_key: where the gateway wants one.
        timeout: seconds for connecting, sending and each wait for data.
        request_key: of the person for whom it asks, so that one version of the model answers all of that person's
            requests while a canary is tried; None: the gateway goes by the address.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = TIMEOUT, request_key: str | None = None):
        self._url = checked(url)
        self._http = http_client.client(timeout=timeout, headers=_headers(api_key, request_key))

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        request = _request(photos, top_k)
        with errors_told(self._url):
            response = self._http.post(self._url + _PATH, **request)
        return _answers(response, len(photos))

    def ready(self) -> Model:
        """The model that answers now.

        Raises:
            ClientError: none does.
        """
        with errors_told(self._url):
            response = self._http.get(self._url + _READY_PATH)
        return _ready(response)

    def close(self) -> None:
        """See Client."""
        self._http.close()


class AsyncGatewayClient(AsyncClient):
    """As GatewayClient, for asyncio."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = TIMEOUT, request_key: str | None = None):
        self._url = checked(url)
        self._http = http_client.async_client(timeout=timeout, headers=_headers(api_key, request_key))

    async def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See AsyncClient."""
        request = _request(photos, top_k)
        with errors_told(self._url):
            response = await self._http.post(self._url + _PATH, **request)
        return _answers(response, len(photos))

    async def ready(self) -> Model:
        """As `GatewayClient.ready`."""
        with errors_told(self._url):
            response = await self._http.get(self._url + _READY_PATH)
        return _ready(response)

    async def close(self) -> None:
        """See AsyncClient."""
        await self._http.aclose()


def _headers(api_key: str | None, request_key: str | None) -> dict[str, str]:
    for name, key in (("API key", api_key), ("request key", request_key)):
        if key and not is_header_value(key):
            raise InvalidKey(f"the {name} has characters that no HTTP header can carry; it must be printable ASCII")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return headers | ({"X-Request-Key": request_key} if request_key else {})


def _request(photos: Sequence[PhotoLike], top_k: int | None) -> dict[str, Any]:
    files = [("file", (name, content)) for name, content in zip(names(photos), read(photos), strict=True)]
    return {"params": {"top_k": _ALL if top_k is None else top_k}, "files": files}


def _answers(response: httpx.Response, photos: int) -> list[Answer]:
    document = json_of(response, _SERVER)
    if not response.is_success:
        raise _error(response, document)
    try:
        model = _model(document)
        rows = document.get("photos", [document])
        if len(rows) != photos:
            raise ValueError(f"{len(rows)} answers for {photos} photos")
        return [
            Answer(model, tuple(Prediction(**prediction) for prediction in row["predictions"]), document["request_id"])
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BadResponse(f"{response.url} is no gateway of ours: {error!r}") from None


def _model(document: dict[str, Any]) -> Model:
    return Model(document["model"]["name"], document["model"]["version"])


def _ready(response: httpx.Response) -> Model:
    document = json_of(response, _SERVER)
    if not response.is_success:
        raise _error(response, document)
    try:
        return _model(document)
    except (KeyError, TypeError) as error:
        raise BadResponse(f"{response.url} is no gateway of ours: {error!r}") from None


def _error(response: httpx.Response, problem: dict[str, Any]) -> Exception:
    """What a problem document means; see `serving.gateway.problems`."""
    code, reason = response.status_code, problem.get("reason")
    # Our gateway gives a reason with each refusal; TensorFlow Serving answers 400 to a path that it does not know.
    if code in (404, 405) or (code == 400 and reason is None):
        return wrong_address(response, _SERVER)
    detail = f"{problem['photo']}: " if problem.get("photo") else ""
    via = proxies.through(str(response.url))
    detail += problem.get("detail") or f"{response.url} answers {code} {response.reason_phrase}{via}"
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
