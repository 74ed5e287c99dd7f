"""Download public data sets of cat photos, Oxford-IIIT Pet and Kaggle data sets, in the layout that ingestion reads.

Existing files are never changed or deleted.
"""

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
from pipeline.datasets.http_download import DownloadError, Interrupted, download, retry
from serving import proxies

OXFORD_MD5 = {
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
}

_KAGGLE = "https://www.kaggle.com"
_KAGGLE_TOKENS = f"{_KAGGLE}/settings/api"
_BROWSER_ADVICE = "download the zip at {address} in a browser and run catbreeds run --data FILE.zip"
# Ingestion ignores hidden files.
_MANIFEST_FILE = ".catbreeds-data.json"
_WORK_FOLDER = ".download"
# Image, class, species (1 is a cat), number of the breed.
_OXFORD_LINE = re.compile(r"(?P<photo>(?P<breed>[A-Za-z_]+)_\d+) \d+ (?P<species>[12]) \d+")
_ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


class DatasetError(Exception):
    """A data set cannot be written as requested; the message gives the remedy."""


class Download(NamedTuple):
    """A complete data set in a folder.

    Attributes:
        files: Number of files.
        folders: Number of folders that contain them.
        changed: Whether files were downloaded; False if the data set was complete.
    """

    files: int
    folders: int
    changed: bool


def download_oxford_cats(
    out: Path, url: str, md5: Mapping[str, str], archives: Path | None, tries: int, view: TransferView
) -> Download:
    """Download the cats of the Oxford-IIIT Pet data set to `out`/<breed>/<photo>.jpg.

    Args:
        out: Folder to write to.
        url: URL of the folder with the archives.
        md5: File name -> checksum of each of the two archives.
        archives: Folder in which to keep the archives; None for a hidden folder in `out` that is deleted at the end.
        tries: Number of consecutive attempts without new data before giving up.
        view: View that shows progress.

    Raises:
        DatasetError: If a different file exists, or an archive has unexpected contents.
        DownloadError: If an archive cannot be downloaded.
    """
    source = {"dataset": "Oxford-IIIT Pet, cats", "md5": dict(md5)}
    if complete := _find_complete(out, source):
        return complete
    with _lock(out):
        folder = archives or out / _WORK_FOLDER
        try:
            for name, checksum in md5.items():
                download(f"{url.rstrip('/')}/{name}", folder / name, checksum, tries, view)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. Rerun the command to resume; data received so far is in {folder}. Without internet access, "
                f"put {' and '.join(md5)} in a folder and pass --archives FOLDER"
            ) from None
        breeds = _read_oxford_breeds(folder / "annotations.tar.gz", out, view)
        targets = {f"images/{photo}.jpg": f"{breed}/{photo}.jpg" for photo, breed in breeds.items()}
        members = _read_members(folder / "images.tar.gz", out, targets, view)
        digests = _write_files(out, ((targets[name], content) for name, content in members))
        missing = sorted(set(targets.values()) - set(digests))
        if missing:
            raise DatasetError(
                f"{folder / 'images.tar.gz'}: {len(missing)} photos listed in the annotations are missing: "
                f"{missing[0]}{', ...' if missing[1:] else ''}"
            )
        return _finish(out, source, digests)


def download_from_kaggle(out: Path, handle: str, tries: int, view: TransferView) -> Download:
    """Download a Kaggle data set to `out`, with the folders it was published with.

    Args:
        out: Folder to write to.
        handle: Name of the data set: owner/name, or owner/name/versions/number.
        tries: Number of consecutive attempts without new data before giving up.
        view: View that shows interruptions.

    Raises:
        DatasetError: If credentials are missing, the handle is invalid, or a different file exists.
        DownloadError: If the download fails, or the environment sets an unusable proxy.
    """
    source = {"dataset": f"Kaggle's {handle}"}
    if complete := _find_complete(out, source):
        return complete
    # kagglehub reads these variables when it is imported.
    os.environ["KAGGLEHUB_CACHE"] = str((out / _WORK_FOLDER).resolve())
    os.environ["KAGGLEHUB_VERBOSITY"] = "error"
    if not view.on_terminal:
        os.environ["TQDM_DISABLE"] = "1"
    address = _kaggle_address(handle)
    try:
        proxies.find(_KAGGLE)
    except proxies.ProxyError as error:
        raise DownloadError(f"{address}: {error}") from None
    with _lock(out):
        folder = _run_kagglehub(out / _WORK_FOLDER, handle, address, tries, view)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        digests = _write_files(out, ((str(path.relative_to(folder)), path.read_bytes()) for path in files))
        return _finish(out, source, digests)


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Create the work folder in `out` and lock it."""
    work = out / _WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        raise DatasetError(f"{out}: another download is in progress; wait for it or choose another folder") from None


def _find_complete(out: Path, source: dict[str, Any]) -> Download | None:
    """Verify an earlier download of the data set; return None if it does not exist or files are missing.

    Raises:
        DatasetError: If a file was changed, or the folder has another data set.
    """
    path = out / _MANIFEST_FILE
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded_source, digests = manifest["source"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: damaged ({error!r}); delete it and rerun the command") from None
    if recorded_source != source:
        raise DatasetError(f"{out}: contains another data set ({recorded_source['dataset']}); choose another folder")
    existing = {name: digest for name, digest in digests.items() if (out / name).exists()}
    for name, digest in existing.items():
        if hashlib.sha256((out / name).read_bytes()).hexdigest() != digest:
            raise DatasetError(f"{out / name}: changed since the download; move it away and rerun the command")
    return _summary(digests, changed=False) if len(existing) == len(digests) else None


def _write_files(out: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Write the files that do not exist yet, each atomically; return path relative to `out` -> SHA-256."""
    digests = {}
    for name, content in files:
        path = out / name
        if path.exists():
            if path.read_bytes() != content:
                raise DatasetError(f"{path}: a different file has this name; move it away and rerun the command")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content)
            os.replace(part, path)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def _finish(out: Path, source: dict[str, Any], digests: dict[str, str]) -> Download:
    """Write the manifest of the data set and delete the work folder."""
    path = out / _MANIFEST_FILE
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps({"source": source, "files": digests}, indent=1), encoding="utf-8")
    os.replace(part, path)
    shutil.rmtree(out / _WORK_FOLDER)
    return _summary(digests, changed=True)


def _summary(digests: dict[str, str], changed: bool) -> Download:
    return Download(len(digests), len({os.path.dirname(name) for name in digests}), changed)


def _read_oxford_breeds(archive: Path, out: Path, view: TransferView) -> dict[str, str]:
    """Read the list in the annotations; return name of each cat photo -> breed."""
    name = "annotations/list.txt"
    content = dict(_read_members(archive, out, {name}, view)).get(name, b"").decode(errors="replace")
    lines = filter(None, map(_OXFORD_LINE.fullmatch, map(str.strip, content.splitlines())))
    cats = {line["photo"]: line["breed"].replace("_", " ") for line in lines if line["species"] == "1"}
    if not cats:
        raise DatasetError(f"{archive}: {name} is not the expected list of photos")
    return cats


def _read_members(archive: Path, out: Path, names: Iterable[str], view: TransferView) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the regular files of a .tar.gz that are in `names`; extract nothing to disk."""
    try:
        with view.reading(archive) as file, tarfile.open(fileobj=file, mode="r|gz") as members:
            for member in members:
                tarfile.data_filter(member, str(out))
                if member.name in names and member.isfile():
                    yield member.name, members.extractfile(member).read()
    except tarfile.FilterError as error:
        raise DatasetError(f"{archive}: rejected, because it has a member outside its folder: {error}") from None
    except _ARCHIVE_ERRORS as error:
        raise DatasetError(f"{archive}: damaged, or not a .tar.gz: {error}") from None


def _kaggle_address(handle: str) -> str:
    """Return the URL of the page of a data set.

    Raises:
        DatasetError: If the handle is invalid, or credentials are missing.
    """
    from kagglehub.config import get_kaggle_credentials
    from kagglehub.handle import parse_dataset_handle

    try:
        address = parse_dataset_handle(handle).to_url()
    except ValueError:
        raise DatasetError(
            f"{handle}: not the name of a data set; must be owner/name or owner/name/versions/number"
        ) from None
    try:
        credentials = get_kaggle_credentials()
    except ValueError as error:
        raise DatasetError(f"{error}; create a new token at {_KAGGLE_TOKENS}") from None
    if credentials is None:
        raise DatasetError(
            f"no Kaggle credentials. Create a token at {_KAGGLE_TOKENS} and put it in KAGGLE_API_TOKEN or in "
            f"~/.kaggle/access_token (an older kaggle.json works, too). Or {_BROWSER_ADVICE.format(address=address)}"
        )
    return address


def _run_kagglehub(work: Path, handle: str, address: str, tries: int, view: TransferView) -> Path:
    """Download and extract the data set with kagglehub; return the folder in `work` that contains it."""
    import requests
    from kagglehub import dataset_download
    from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError

    def attempt() -> Path:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # kagglehub advertises its newer versions on stdout
                return Path(dataset_download(handle))
        except KaggleApiHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise DatasetError(
                    f"{address}: Kaggle rejects these credentials ({status}). Create a new token at {_KAGGLE_TOKENS}, "
                    "and open the address in a browser: some data sets require that you accept their licence first"
                ) from None
            if status == 404:
                raise DatasetError(f"{address}: no such data set on Kaggle; pass --dataset owner/name") from None
            raise Interrupted(f"Kaggle returned {status}") from None
        except requests.ConnectionError as error:
            cause = error.args[0] if error.args else error
            raise Interrupted(f"cannot connect{proxy_note(error)} ({getattr(cause, 'reason', cause)})") from None
        except requests.RequestException as error:
            raise Interrupted(f"connection lost{proxy_note(error)} ({error})") from None
        except DataCorruptionError:
            raise Interrupted("the archive is corrupt: its MD5 differs from Kaggle's") from None
        except (*_ARCHIVE_ERRORS, ValueError) as error:
            for archive in archives():  # its size is correct, so kagglehub would reuse it
                archive.unlink()
            raise Interrupted(f"the archive is corrupt: {error}") from None

    def proxy_note(error: requests.RequestException) -> str:
        return proxies.through(error.request.url) if error.request is not None else ""

    def archives() -> list[Path]:
        return [*work.rglob("*.archive")]

    try:
        return retry(attempt, lambda: sum(path.stat().st_size for path in archives()), tries, address, view)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Rerun the command to resume; data received so far is in {work}. Without internet access, "
            f"{_BROWSER_ADVICE.format(address=address)}"
        ) from None
