"""HTTP downloads that resume after interruptions and verify checksums."""

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

_BACKOFF_SECONDS = 0.25
_TIMEOUT = httpx.Timeout(30, connect=10)
_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}


class DownloadError(Exception):
    """A download failed; the message gives the URL and the cause."""


class Interrupted(Exception):
    """An attempt ended early and another one may succeed; the message gives the cause."""


def download(url: str, path: Path, md5: str, tries: int, view: TransferView) -> None:
    """Download a file, unless it exists already. An incomplete file is kept next to `path` as `<name>.part`.

    Args:
        url: URL of the file, http:// or https://.
        path: Path to write. A file that exists is verified and not changed.
        md5: Hexadecimal MD5 of the complete file.
        tries: Number of consecutive attempts without new data before giving up; see `retry`.
        view: View that shows progress and interruptions.

    Raises:
        DownloadError: If the download fails, or a different file exists at `path`.
    """
    if path.exists():
        if _md5(path) != md5:
            raise DownloadError(
                f"{path}: not the expected file from {url} (MD5 is {_md5(path)}, expected {md5}); move it away"
            )
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for is_first in (True, False):
        with http_client.client(follow_redirects=True, timeout=_TIMEOUT) as client:
            retry(lambda client=client: _resume(client, url, part, view), lambda: _size(part), tries, url, view)
        actual = _md5(part)
        if actual == md5:
            os.replace(part, path)
            return
        part.unlink()
        if is_first:
            view.note(f"{path.name}: the download was corrupt; starting again")
    raise DownloadError(f"{url}: the download was corrupt twice (MD5 is {actual}, expected {md5}); it was deleted")


def retry(attempt: Callable[[], _T], received: Callable[[], int], tries: int, address: str, view: TransferView) -> _T:
    """Call `attempt` until it succeeds and return its result.

    Args:
        attempt: Function that resumes the transfer; raises Interrupted if another attempt may succeed.
        received: Function that returns the number of bytes received so far.
        tries: Number of consecutive attempts without new data before giving up, 1 or more. Pauses grow exponentially.
        address: URL for error messages.
        view: View that shows interruptions.

    Raises:
        DownloadError: If `tries` consecutive attempts received no data.
    """
    max_received, failures = received(), 0
    while True:
        try:
            return attempt()
        except Interrupted as error:
            now = received()
            failures = 0 if now > max_received else failures + 1
            max_received = max(max_received, now)
            if failures >= tries:
                raise DownloadError(f"{address}: {error}") from None
            view.note(f"{error}; {f'resuming at {now / 1e6:.1f} MB' if now else 'trying again'}")
        time.sleep(_BACKOFF_SECONDS * 2**failures)


def _resume(client: httpx.Client, url: str, part: Path, view: TransferView) -> None:
    """Request the missing bytes of `part` and append them.

    Raises:
        Interrupted: If bytes are still missing.
        DownloadError: If another attempt would fail as well.
    """
    offset = _size(part)
    # Without compression, ranges, lengths and the checksum refer to the file itself.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        with client.stream("GET", url, headers=headers) as response:
            _receive(response, url, part, offset, view)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Interrupted(f"cannot connect{_proxy_note(error)} ({error})") from None
    except httpx.HTTPError as error:
        raise Interrupted(f"connection lost{_proxy_note(error)} ({str(error) or type(error).__name__})") from None
    except proxies.ProxyError as error:
        raise DownloadError(f"{url}: {error}") from None
    except httpx.InvalidURL as error:
        raise DownloadError(f"{url}: invalid URL ({error})") from None


def _proxy_note(error: httpx.HTTPError) -> str:
    """Return a note about the proxy of the failed request, whose URL may be that of a redirect."""
    return proxies.through(str(error.request.url))


def _receive(response: httpx.Response, url: str, part: Path, offset: int, view: TransferView) -> None:
    """Write the response to a request for the bytes from `offset`; raise the errors of `_resume`."""
    status = f"{response.status_code} {response.reason_phrase}{proxies.through(str(response.url))}"
    content_range = response.headers.get("Content-Range", "")
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        if content_range == f"bytes */{offset}":
            return
        part.unlink()
        raise Interrupted("the file on the server is shorter than the part received earlier")
    if response.status_code in _RETRYABLE_STATUS:
        raise Interrupted(f"the server returned {status}")
    if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise DownloadError(f"{url}: the server returned {status}")
    is_partial = response.status_code == httpx.codes.PARTIAL_CONTENT
    if is_partial and not content_range.startswith(f"bytes {offset}-"):
        part.unlink(missing_ok=True)
        raise Interrupted("the server sent another range than requested")
    start = offset if is_partial else 0
    length = response.headers.get("Content-Length", "")
    view.start(part.stem, start, start + int(length) if length.isdigit() else None)
    with open(part, "ab" if is_partial else "wb") as file:
        for block in response.iter_raw():
            file.write(block)
            view.advance(len(block))
    total = content_range.rpartition("/")[2]
    if is_partial and total.isdigit() and _size(part) < int(total):
        raise Interrupted("the server sent less than requested")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
