"""Where photos come from: a folder or an archive, here or at any address that TensorFlow's file systems open."""

import abc
import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import tensorflow as tf
from tfx.dsl.io import fileio

from components.errors import DataError
from serving.photo import MAX_BYTES, PhotoError

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
WANTED = "it must be a folder or an archive (.zip, .tar.gz) that holds one folder of photos for each breed"

_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_CHUNK = 512
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    tf.errors.InvalidArgumentError,  # where zipfile looks for more than TensorFlow's file has
)


class Refused(NamedTuple):
    """A file that is left out unread, and why."""

    path: str
    reason: str


class Listing(NamedTuple):
    """What a source holds.

    Attributes:
        photos: path in the source -> breed, sorted by path.
        refused: files that lie elsewhere than in a breed's folder, or are no plain files.
    """

    photos: dict[str, str]
    refused: list[Refused]


class Source(abc.ABC):
    """Files below a folder or in an archive, named by their paths with "/" between folders."""

    def __init__(self, data: str):
        self.data = data

    @abc.abstractmethod
    def files(self) -> tuple[list[str], list[Refused]]:
        """Paths of the plain files that are not hidden, and what is none."""

    @abc.abstractmethod
    def read(self, paths: Sequence[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Each of `paths` with a function that reads it: to be called once, from any thread; PhotoError if it fails.

        It reads a byte more than photos may have at most, so that nothing larger fills the memory.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 that changes when a file does."""

    def chunks(self, paths: Sequence[str]) -> list[list[str]]:
        """`paths` in parts that workers can read apart from each other."""
        return [list(paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]


def open_source(data: str) -> Source:
    """The source at `data`.

    Raises:
        DataError: there is none.
    """
    try:
        if not fileio.exists(data):
            raise DataError(f"{data}: no such folder or archive; {WANTED}")
        if fileio.isdir(data):
            return _Folder(data)
    except tf.errors.OpError as error:
        raise DataError(f"{data}: cannot be opened: {error.message}; {WANTED}") from None
    for ending, source in ((".zip", _Zip), (ARCHIVES[1:], _Tar)):
        if data.lower().endswith(ending):
            return source(data)
    raise DataError(f"{data}: {WANTED}")


def list_photos(source: Source) -> Listing:
    """Finds the breed folders, also where they are nested deeper as archives unpack, and the files in them.

    Raises:
        DataError: there are no breed folders with files in them, or the archive cannot be read.
    """
    files, refused = source.files()
    root = _breeds_root(files)
    photos = {}
    for path in sorted(files):
        *_, breed, name = ("", *path.removeprefix(root).split("/"))
        if breed and path == f"{root}{breed}/{name}":
            photos[path] = breed
        else:
            refused.append(Refused(path, "not directly in the folder of a breed"))
    if not photos:
        first = "".join(f" ({path}: {reason})" for path, reason in sorted(refused)[:1])
        raise DataError(f"{source.data}: no photos found{first}; {WANTED}")
    return Listing(photos, sorted(refused))


def _breeds_root(files: list[str]) -> str:
    """The folder, "" or with "/" at its end, that holds the breed folders: single folders of folders are entered."""
    root = ""
    while True:
        below = [path.removeprefix(root).split("/") for path in files if path.startswith(root)]
        folders = {parts[0] for parts in below if len(parts) > 1}
        direct, deeper = (sum(len(parts) == 2 for parts in below), sum(len(parts) > 2 for parts in below))
        if len(folders) != 1 or deeper <= direct:
            return root
        root += f"{folders.pop()}/"


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


class _Folder(Source):
    """A folder. Local ones are read by Python itself, which knows links, pipes and names in any encoding."""

    def files(self):
        try:
            return self._walk_remote() if "://" in self.data else self._walk_local()
        except OSError as error:
            raise DataError(f"{error.filename or self.data}: cannot be read: {error.strerror or error}") from None
        except tf.errors.OpError as error:
            raise DataError(f"{self.data}: cannot be read: {error.message}") from None

    def _walk_local(self) -> tuple[list[str], list[Refused]]:
        found, refused, folders, seen = [], [], [(False, "")], set()
        while folders:
            _, folder = folders.pop()
            real = os.path.realpath(os.path.join(self.data, folder))
            if real in seen:
                refused.append(Refused(folder, "a link to a folder that is read already"))
                continue
            seen.add(real)
            for entry in os.scandir(real):
                if _is_ignored(entry.name):
                    continue
                path = f"{folder}{entry.name}"
                if os.path.isdir(entry):  # the entry's own method raises for a link to itself
                    folders.append((entry.is_symlink(), f"{path}/"))
                elif os.path.isfile(entry):
                    found.append(path)
                else:
                    refused.append(Refused(path, "a link to nothing" if entry.is_symlink() else "not a plain file"))
            folders.sort(reverse=True)  # links are followed last: a folder keeps its own name
        return found, refused

    def _walk_remote(self) -> tuple[list[str], list[Refused]]:
        found, folders = [], [""]
        while folders:
            folder = folders.pop()
            for name in fileio.listdir(os.path.join(self.data, folder)):
                name = name.rstrip("/")
                if _is_ignored(name):
                    continue
                path = f"{folder}{name}"
                if fileio.isdir(os.path.join(self.data, path)):
                    folders.append(f"{path}/")
                else:
                    found.append(path)
        return found, []

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: self._content(path)

    def _content(self, path: str) -> bytes:
        return _first_bytes(lambda: _open(os.path.join(self.data, path)))

    def digest(self):
        digest = hashlib.sha256()
        found, refused = self.files()
        for path in sorted(found):
            content = "unreadable"  # ingestion leaves it out and names it
            with contextlib.suppress(PhotoError):
                content = hashlib.sha256(self._content(path)).hexdigest()
            digest.update(f"{path}\0{content}\0".encode(errors="surrogateescape"))
        digest.update(repr(sorted(refused)).encode())
        return digest.hexdigest()


class _Archive(Source):
    """An archive, read where it lies: nothing is ever unpacked to disk."""

    def digest(self):
        with self._errors_named(), _open(self.data) as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _errors_named(self):
        try:
            yield
        except _DAMAGED as error:
            raise DataError(f"{self.data}: the archive is damaged or cut off: {error}") from None
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{self.data}: cannot be read: {error}") from None

    def _sort_out(self, members: Iterator[tuple[str, str]]) -> tuple[list[str], list[Refused]]:
        """Members (name, what is wrong with it or "") -> paths to read, and what is refused."""
        found, refused = set(), []
        for name, wrong in members:
            path = _plain(name)
            parts = path.split("/")
            if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
                refused.append(Refused(name, "points outside the archive"))
            elif any(map(_is_ignored, parts)):
                continue
            elif wrong:
                refused.append(Refused(path, wrong))
            elif path in found:
                refused.append(Refused(path, "the archive has this name twice; the first is read"))
            else:
                found.add(path)
        return list(found), refused


class _Zip(_Archive):
    """A zip: its members are read in any order."""

    def files(self):
        return self._sort_out((info.filename, _wrong(info)) for info in self._infos)

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: _first_bytes(lambda: self._archive.open(self._members[path]))

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        with self._errors_named():
            return zipfile.ZipFile(_open(self.data))

    @functools.cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        return {_plain(info.filename): info for info in reversed(self._infos) if not _wrong(info)}

    @property
    def _infos(self) -> list[zipfile.ZipInfo]:
        return [info for info in self._archive.infolist() if not info.filename.endswith(("/", "\\"))]


def _wrong(info: zipfile.ZipInfo) -> str:
    return "a link" if stat.S_ISLNK(info.external_attr >> 16) else "encrypted" if info.flag_bits & 1 else ""


class _Tar(_Archive):
    """A tar, compressed or not: it can only be read from its beginning to its end."""

    def files(self):
        def members(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
            for info in archive:
                if not info.isdir():
                    yield info.name, "" if info.isfile() else "a link" if info.islnk() or info.issym() else "a device"

        with self._streamed() as archive:
            return self._sort_out(members(archive))

    def read(self, paths):
        wanted = set(paths)
        with self._streamed() as archive:
            for info in archive:
                path = _plain(info.name)
                if info.isfile() and path in wanted:
                    wanted.remove(path)
                    with archive.extractfile(info) as file:
                        content = file.read(MAX_BYTES + 1)
                    yield path, lambda content=content: content

    def chunks(self, paths):
        return [list(paths)]

    @contextlib.contextmanager
    def _streamed(self) -> Iterator[tarfile.TarFile]:
        with self._errors_named(), _open(self.data) as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = gzip.GzipFile(fileobj=file) if is_gzip else file  # tarfile itself ignores the checksum
            with tarfile.open(fileobj=content, mode="r|*", tarinfo=_Header) as archive:
                yield archive
            while content.read(2**20):  # on to the checksum
                pass


class _Header(tarfile.TarInfo):
    """A header that is missing or damaged is an error; tarfile would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _plain(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _open(path: str) -> BinaryIO:
    return fileio.open(path, "rb") if "://" in path else open(path, "rb")


def _first_bytes(opening: Callable[[], BinaryIO]) -> bytes:
    """The first bytes of what `opening` opens.

    Raises:
        PhotoError: it cannot be opened or read.
    """
    try:
        with opening() as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, *_DAMAGED, tf.errors.OpError) as error:
        raise PhotoError("unreadable", f"the file cannot be read: {error}") from None
