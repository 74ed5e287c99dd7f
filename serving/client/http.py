"""Functions that the HTTP clients share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from serving import proxies
from serving.addresses import has_valid_port
from serving.client.errors import BadResponse, RequestRejected, TimedOut, Unreachable, WrongAddress

TIMEOUT = 30.0  # seconds
# OpenSSL's errors for a server that does not use TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "record layer failure")


def check_url(url: str) -> str:
    """Return `url` without its trailing slash.

    Raises:
        WrongAddress: If the port is out of range.
    """
    if not has_valid_port(url):
        raise WrongAddress(
            f"{url}: not the address of a server: the port must be between 1 and 65535; write http://HOST:PORT"
        )
    return url.rstrip("/")


@contextlib.contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Convert httpx's connection errors to ClientErrors.

    Raises:
        TimedOut: If the server does not respond within the timeout.
        Unreachable: If no connection to `url` can be established.
        RequestRejected: If the environment sets a proxy that cannot be used.
        WrongAddress: If `url` is not a valid HTTP address.
    """
    try:
        yield
    except httpx.TimeoutException:
        raise TimedOut(f"{url} did not respond in time{proxies.through(url)}") from None
    except proxies.ProxyError as error:
        raise RequestRejected(str(error)) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise WrongAddress(f"{url}: not the address of a server: {error}; write http://HOST:PORT") from None
    except httpx.TransportError as error:
        if any(reason in str(error) for reason in _NO_TLS):
            raise WrongAddress(f"{url} does not support https; write http://HOST:PORT") from None
        raise Unreachable(f"{url} cannot be reached{proxies.through(url)}: {error}") from None


def wrong_address(response: httpx.Response, server: str) -> WrongAddress:
    """Return the error for a server that has no such path.

    Args:
        response: Response of the server.
        server: Kind of server that the client expects, with its article: "a gateway".
    """
    return WrongAddress(
        f"{response.url} returned {response.status_code} {response.reason_phrase}, so it is not the address of "
        f"{server}; write the address without a path, http://HOST:PORT"
    )


def json_object(response: httpx.Response, server: str) -> dict[str, Any]:
    """Return the JSON object in the body.

    Args:
        response: Response of the server.
        server: Kind of server that the client expects, with its article: "a gateway".

    Raises:
        BadResponse: If the body is not a JSON object.
        WrongAddress: If the server has no such path.
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        if response.status_code in (404, 405):
            raise wrong_address(response, server)
        via = proxies.through(str(response.url))
        raise BadResponse(
            f"{response.url} returned {response.status_code} without a JSON object{via}: {response.text[:200]!r}"
        )
    return document
