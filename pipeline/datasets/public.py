"""Real photos of cats, laid out as ingestion reads them. Nothing that lay there before is changed or removed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from pipeline.console import TransferView
from pipeline.datasets.downloads import DownloadError, Interrupted, download, persist
from serving import proxies

OXFORD_MD5 = {
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
}

_KAGGLE = "https://www.kaggle.com"
_KAGGLE_TOKENS = f"{_KAGGLE}/settings/api"
_BY_BROWSER = "download the zip at {address} in a browser and say catbreeds run --data FILE.zip"
# Ingestion passes hidden files over.
_RECORD_FILE = ".catbreeds-data.json"
_WORK = ".download"
# Image, class, species (1 is a cat), number of the breed.
_OXFORD_LINE = re.compile(r"(?P<photo>(?P<breed>[A-Za-z_]+)_\d+) \d+ (?P<species>[12]) \d+")
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


class DatasetError(Exception):
    """What was asked for cannot be; the message says what to do about it."""


class Laid(NamedTuple):
    """A data set that lies there whole, each file as it was published.

    Attributes:
        files: number of files.
        folders: number of folders they lie in.
        fetched: whether anything was fetched; otherwise all had been there.
        source: what was fetched.
    """

    files: int
    folders: int
    fetched: bool
    source: dict[str, Any]


def oxford(out: Path, url: str, md5: Mapping[str, str], archives: Path | None, tries: int, view: TransferView) -> Laid:
    """The photos of cats of the Oxford-IIIT Pet data set, as `out`/<breed>/<photo>.jpg.

    Args:
        out: the folder to fill.
        url: of the folder that holds the archives.
        md5: file name -> checksum of each of the two archives.
        archives: where they are kept; without it they lie hidden in `out` and go when all is done.
        tries: so many in a row may bring nothing before it gives up.
        view: shows how far it is.

    Raises:
        DatasetError: another file is in the way, or an archive holds something else.
        DownloadError: an archive does not come.
    """
    source = {"dataset": "Oxford-IIIT Pet, cats", "md5": dict(md5)}
    if laid := _complete(out, source):
        return laid
    with _alone(out):
        folder = archives or out / _WORK
        try:
            for name, checksum in md5.items():
                download(f"{url.rstrip('/')}/{name}", folder / name, checksum, tries, view)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. Run again to go on: what has come is in {folder}. Without internet, bring "
                f"{' and '.join(md5)} in a folder and say --archives FOLDER"
            ) from None
        breeds = _oxford_cats(folder / "annotations.tar.gz", out, view)
        wanted = {f"images/{photo}.jpg": f"{breed}/{photo}.jpg" for photo, breed in breeds.items()}
        found = _members(folder / "images.tar.gz", out, wanted, view)
        digests = _lay(out, ((wanted[name], content) for name, content in found))
        missing = sorted(set(wanted.values()) - set(digests))
        if missing:
            raise DatasetError(
                f"{folder / 'images.tar.gz'}: {len(missing)} photos that the annotations name are not in it: "
                f"{missing[0]}{', ...' if missing[1:] else ''}"
            )
        return _finished(out, source, digests)


def kaggle(out: Path, handle: str, tries: int, view: TransferView) -> Laid:
    """A data set of Kaggle in `out`, with the folders it was published with.

    Args:
        out: the folder to fill.
        handle: owner/name, or owner/name/versions/number.
        tries: so many in a row may bring nothing before it gives up.
        view: shows what happens.

    Raises:
        DatasetError: there are no credentials, the handle is wrong, or another file is in the way.
        DownloadError: it does not come, or the environment names a proxy that cannot be used.
    """
    source = {"dataset": f"Kaggle's {handle}"}
    if laid := _complete(out, source):
        return laid
    # The client reads these when it is imported.
    os.environ["KAGGLEHUB_CACHE"] = str((out / _WORK).resolve())
    os.environ["KAGGLEHUB_VERBOSITY"] = "error"
    if not view.on_terminal:
        os.environ["TQDM_DISABLE"] = "1"
    address = _kaggle_address(handle)
    try:
        proxies.find(_KAGGLE)
    except proxies.ProxyError as error:
        raise DownloadError(f"{address}: {error}") from None
    with _alone(out):
        folder = _fetch_from_kaggle(out / _WORK, handle, address, tries, view)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        digests = _lay(out, ((str(path.relative_to(folder)), path.read_bytes()) for path in files))
        return _finished(out, source, digests)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        raise DatasetError(f"{out}: another download is at work there; wait for it or take another folder") from None


def _complete(out: Path, source: dict[str, Any]) -> Laid | None:
    """What lies there if all of it does; None if something is missing.

    Raises:
        DatasetError: a file is not as it came, or another data set lies there.
    """
    path = out / _RECORD_FILE
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        recorded, digests = record["source"], record["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: damaged ({error!r}); delete it and run again") from None
    if recorded != source:
        raise DatasetError(f"{out}: holds another data set ({recorded['dataset']}); take another folder")
    there = {name: digest for name, digest in digests.items() if (out / name).exists()}
    for name, digest in there.items():
        if hashlib.sha256((out / name).read_bytes()).hexdigest() != digest:
            raise DatasetError(f"{out / name}: not the file that was downloaded; move it away and run again")
    return _laid(digests, source, fetched=False) if len(there) == len(digests) else None


def _lay(out: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Writes files that are not there yet, each at once or not at all; returns path below `out` -> SHA-256."""
    digests = {}
    for name, content in files:
        path = out / name
        if path.exists():
            if path.read_bytes() != content:
                raise DatasetError(f"{path}: another file of that name is in the way; move it away and run again")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content)
            os.replace(part, path)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def _finished(out: Path, source: dict[str, Any], digests: dict[str, str]) -> Laid:
    """Writes down what was laid, and removes what was only there to get it."""
    path = out / _RECORD_FILE
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps({"source": source, "files": digests}, indent=1), encoding="utf-8")
    os.replace(part, path)
    shutil.rmtree(out / _WORK)
    return _laid(digests, source, fetched=True)


def _laid(digests: dict[str, str], source: dict[str, Any], fetched: bool) -> Laid:
    return Laid(len(digests), len({os.path.dirname(name) for name in digests}), fetched, source)


def _oxford_cats(archive: Path, out: Path, view: TransferView) -> dict[str, str]:
    """Name of each photo of a cat -> breed, from the list in the annotations."""
    name = "annotations/list.txt"
    content = dict(_members(archive, out, {name}, view)).get(name, b"").decode(errors="replace")
    lines = filter(None, map(_OXFORD_LINE.fullmatch, map(str.strip, content.splitlines())))
    cats = {line["photo"]: line["breed"].replace("_", " ") for line in lines if line["species"] == "1"}
    if not cats:
        raise DatasetError(f"{archive}: its {name} is not the list of photos that was expected")
    return cats


def _members(archive: Path, out: Path, wanted: Iterable[str], view: TransferView) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files of a .tar.gz that are wanted; nothing is written."""
    try:
        with view.reading(archive) as file, tarfile.open(fileobj=file, mode="r|gz") as members:
            for member in members:
                tarfile.data_filter(member, str(out))
                if member.name in wanted and member.isfile():
                    yield member.name, members.extractfile(member).read()
    except tarfile.FilterError as error:
        raise DatasetError(f"{archive}: refused, as it holds what could write elsewhere: {error}") from None
    except _DAMAGED as error:
        raise DatasetError(f"{archive}: not a .tar.gz, or damaged: {error}") from None


def _kaggle_address(handle: str) -> str:
    """The page of a data set.

    Raises:
        DatasetError: it has none, or there are no credentials.
    """
    from kagglehub.config import get_kaggle_credentials
    from kagglehub.handle import parse_dataset_handle

    try:
        address = parse_dataset_handle(handle).to_url()
    except ValueError:
        raise DatasetError(f"{handle}: no data set's name; write owner/name or owner/name/versions/number") from None
    try:
        credentials = get_kaggle_credentials()
    except ValueError as error:
        raise DatasetError(f"{error}; make a new token at {_KAGGLE_TOKENS}") from None
    if credentials is None:
        raise DatasetError(
            f"no Kaggle credentials. Make a token at {_KAGGLE_TOKENS} and put it in KAGGLE_API_TOKEN or in "
            f"~/.kaggle/access_token (an older kaggle.json works, too). Or {_BY_BROWSER.format(address=address)}"
        )
    return address


def _fetch_from_kaggle(work: Path, handle: str, address: str, tries: int, view: TransferView) -> Path:
    """The folder below `work` that Kaggle's own client unpacked the data set in."""
    import requests
    from kagglehub import dataset_download
    from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError

    def fetch() -> Path:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it advertises newer versions of itself there
                return Path(dataset_download(handle))
        except KaggleApiHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise DatasetError(
                    f"{address}: Kaggle refuses these credentials ({status}). Make a new token at {_KAGGLE_TOKENS}, "
                    "and open the address in a browser: some data sets want their licence accepted first"
                ) from None
            if status == 404:
                raise DatasetError(f"{address}: Kaggle has no such data set; say --dataset owner/name") from None
            raise Interrupted(f"Kaggle answers {status}") from None
        except requests.ConnectionError as error:
            cause = error.args[0] if error.args else error
            raise Interrupted(f"cannot be reached{through(error)} ({getattr(cause, 'reason', cause)})") from None
        except requests.RequestException as error:
            raise Interrupted(f"broke off{through(error)} ({error})") from None
        except DataCorruptionError:
            raise Interrupted("the archive came damaged: its MD5 is another than Kaggle says") from None
        except (*_DAMAGED, ValueError) as error:
            for archive in archives():  # the client would take it for a good one: its length is right
                archive.unlink()
            raise Interrupted(f"the archive came damaged: {error}") from None

    def through(error: requests.RequestException) -> str:
        return proxies.through(error.request.url) if error.request is not None else ""

    def archives() -> list[Path]:
        return [*work.rglob("*.archive")]

    try:
        return persist(fetch, lambda: sum(path.stat().st_size for path in archives()), tries, address, view)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Run again to go on: what has come is in {work}. Without internet, "
            f"{_BY_BROWSER.format(address=address)}"
        ) from None
