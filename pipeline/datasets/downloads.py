"""Files by HTTP: what was cut off goes on where it stopped, and only what has the right checksum gets its name."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

from pipeline.console import TransferView
from serving import http_client, proxies

_T = TypeVar("_T")

_PAUSE_SECONDS = 0.25
_TIMEOUT = httpx.Timeout(30, connect=10)
_WORTH_A_RETRY = {408, 425, 429, 500, 502, 503, 504}


class DownloadError(Exception):
    """A file did not come; the message names its address and the cause."""


class Interrupted(Exception):
    """A try ended early; another one may go on. The message says why."""


def download(url: str, path: Path, md5: str, tries: int, view: TransferView) -> None:
    """Sees to it that `path` is the file at `url`; until all of it has come, what there is lies beside it as `.part`.

    Args:
        url: http:// or https://.
        path: one that is there already is checked and left as it is.
        md5: of the whole file, in hexadecimal digits.
        tries: see `persist`.
        view: is told how far it is, and of interruptions.

    Raises:
        DownloadError: it does not come, or another file lies at `path`.
    """
    if path.exists():
        if _md5(path) != md5:
            raise DownloadError(f"{path}: not the file that {url} is to be (MD5 {_md5(path)}, not {md5}); move it away")
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for another_try in (True, False):
        with http_client.client(follow_redirects=True, timeout=_TIMEOUT) as client:
            persist(lambda client=client: _go_on(client, url, part, view), lambda: _size(part), tries, url, view)
        found = _md5(part)
        if found == md5:
            os.replace(part, path)
            return
        part.unlink()
        if another_try:
            view.note(f"{path.name}: came damaged; it is fetched anew")
    raise DownloadError(f"{url}: what came has the wrong MD5, twice ({found}, not {md5}); nothing of it was kept")


def persist(attempt: Callable[[], _T], reached: Callable[[], int], tries: int, address: str, view: TransferView) -> _T:
    """What `attempt` returns; it is made again until `tries` in a row have brought nothing new.

    Args:
        attempt: goes on where the last one ended; raises Interrupted when another one is worth trying.
        reached: bytes that are there.
        tries: 1 or more; the pauses between them grow.
        address: what is fetched, for messages.
        view: is told of interruptions.

    Raises:
        DownloadError: so many tries in a row brought nothing.
    """
    most, fruitless = reached(), 0
    while True:
        try:
            return attempt()
        except Interrupted as error:
            now = reached()
            fruitless = 0 if now > most else fruitless + 1
            most = max(most, now)
            if fruitless >= tries:
                raise DownloadError(f"{address}: {error}") from None
            view.note(f"{error}; {f'going on at {now / 1e6:.1f} MB' if now else 'trying again'}")
        time.sleep(_PAUSE_SECONDS * 2**fruitless)


def _go_on(client: httpx.Client, url: str, part: Path, view: TransferView) -> None:
    """Asks for what `part` lacks and appends it.

    Raises:
        Interrupted: not all has come.
        DownloadError: nothing will ever come from there.
    """
    have = _size(part)
    # Identity: ranges, lengths and the checksum are those of the file itself.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with client.stream("GET", url, headers=headers) as response:
            _receive(response, url, part, have, view)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Interrupted(f"cannot be reached{_through(error)} ({error})") from None
    except httpx.HTTPError as error:
        raise Interrupted(f"broke off{_through(error)} ({str(error) or type(error).__name__})") from None
    except proxies.ProxyError as error:
        raise DownloadError(f"{url}: {error}") from None
    except httpx.InvalidURL as error:
        raise DownloadError(f"{url}: no address ({error})") from None


def _through(error: httpx.HTTPError) -> str:
    """The proxy of the request that failed, which may be one after a redirect."""
    return proxies.through(str(error.request.url))


def _receive(response: httpx.Response, url: str, part: Path, have: int, view: TransferView) -> None:
    """Writes the answer to a request for what follows the first `have` bytes; raises as `_go_on`."""
    status = f"{response.status_code} {response.reason_phrase}{proxies.through(str(response.url))}"
    content_range = response.headers.get("Content-Range", "")
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
        if content_range == f"bytes */{have}":
            return
        part.unlink()
        raise Interrupted("the file there is shorter than what had come of it")
    if response.status_code in _WORTH_A_RETRY:
        raise Interrupted(f"the server answers {status}")
    if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise DownloadError(f"{url}: the server answers {status}")
    goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
    if goes_on and not content_range.startswith(f"bytes {have}-"):
        part.unlink(missing_ok=True)
        raise Interrupted("the server sent another part than was asked for")
    start = have if goes_on else 0
    length = response.headers.get("Content-Length", "")
    view.start(part.stem, start, start + int(length) if length.isdigit() else None)
    with open(part, "ab" if goes_on else "wb") as file:
        for block in response.iter_raw():
            file.write(block)
            view.advance(len(block))
    whole = content_range.rpartition("/")[2]
    if goes_on and whole.isdigit() and _size(part) < int(whole):
        raise Interrupted("the server sent less than the rest")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
