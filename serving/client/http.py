"""What the clients of HTTP servers share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from serving import proxies
from serving.addresses import has_valid_port
from serving.client.errors import BadAnswer, Refused, TimedOut, Unreachable, WrongAddress

TIMEOUT = 30.0  # seconds
# What OpenSSL says of a server that answers something else than TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "record layer failure")


def checked(url: str) -> str:
    """`url` without a slash at its end.

    Raises:
        WrongAddress: its port is none.
    """
    if not has_valid_port(url):
        raise WrongAddress(f"{url} is no address of a server: a port is 1 to 65535; write http://HOST:PORT")
    return url.rstrip("/")


@contextlib.contextmanager
def errors_told(url: str) -> Iterator[None]:
    """Turns errors of connections into ours.

    Raises:
        TimedOut: no answer within the time.
        Unreachable: nobody answers at `url`.
        Refused: the environment names a proxy that cannot be used.
        WrongAddress: `url` is none.
    """
    try:
        yield
    except httpx.TimeoutException:
        raise TimedOut(f"{url} did not answer in time{proxies.through(url)}") from None
    except proxies.ProxyError as error:
        raise Refused(str(error)) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise WrongAddress(f"{url} is no address of a server: {error}; write http://HOST:PORT") from None
    except httpx.TransportError as error:
        if any(reason in str(error) for reason in _NO_TLS):
            raise WrongAddress(f"{url} does not speak https; write http://HOST:PORT") from None
        raise Unreachable(f"{url} cannot be reached{proxies.through(url)}: {error}") from None


def wrong_address(response: httpx.Response, server: str) -> WrongAddress:
    """What to say of a server that does not know the path.

    Args:
        response: its answer.
        server: whose address should have been given.
    """
    return WrongAddress(
        f"{response.url} answers {response.status_code} {response.reason_phrase}: that is no address of {server}; "
        "write its address alone, http://HOST:PORT"
    )


def json_of(response: httpx.Response, server: str) -> dict[str, Any]:
    """The object in the body.

    Args:
        response: of a server.
        server: what it should be, for people.

    Raises:
        BadAnswer: there is none.
        WrongAddress: the server does not know the path.
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        if response.status_code in (404, 405):
            raise wrong_address(response, server)
        via = proxies.through(str(response.url))
        raise BadAnswer(
            f"{response.url} answers {response.status_code} and no JSON object{via}: {response.text[:200]!r}"
        )
    return document
