"""What the clients of HTTP servers share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from serving import proxies
from serving.client.errors import BadAnswer, Refused, TimedOut, Unreachable

TIMEOUT = 30.0  # seconds


@contextlib.contextmanager
def errors_told(url: str) -> Iterator[None]:
    """Turns errors of connections into ours.

    Raises:
        TimedOut: no answer within the time.
        Unreachable: nobody answers at `url`.
        Refused: `url` is none, or the environment names a proxy that cannot be used.
    """
    try:
        yield
    except httpx.TimeoutException:
        raise TimedOut(f"{url} did not answer in time{proxies.through(url)}") from None
    except proxies.ProxyError as error:
        raise Refused(str(error)) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise Refused(f"{url} is no address of a server: {error}") from None
    except httpx.TransportError as error:
        raise Unreachable(f"{url} cannot be reached{proxies.through(url)}: {error}") from None


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The object in the body.

    Raises:
        BadAnswer: there is none.
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        via = proxies.through(str(response.url))
        raise BadAnswer(
            f"{response.url} answers {response.status_code} and no JSON object{via}: {response.text[:200]!r}"
        )
    return document
