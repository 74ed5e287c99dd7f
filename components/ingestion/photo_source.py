"""Where photos come from: a folder or an archive, here or at any address that TensorFlow's file systems open."""

import abc
import bz2
import contextlib
import functools
import gzip
import hashlib
import itertools
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
from components.ingestion.photo_layout import (
    LINK,
    LINK_AGAIN,
    LINK_TO_NOTHING,
    NOT_PLAIN,
    OUTSIDE,
    WANTED,
    Found,
    Listing,
    Refused,
    find_breeds,
    may_be_archive,
)
from serving.names import is_ignored, printable
from serving.photo import MAX_BYTES, PhotoError

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
ENCRYPTED = "encrypted; unpack the archive with its password first, and pass the folder"

_CHUNK = 512
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_NAMES_GUESSED = (
    "names in the archive that are not UTF-8 were read as CP437: {}, for example {}. If that is not its name, unpack "
    "the archive and pass the folder, or pack it again with UTF-8 names"
)
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


_UNPACK = "unpack it, and pass the folder"
_AGAIN = "download it again"
# How files begin that are named like archives, what they are, and what to do.
_OTHER_CONTENTS = (
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", _UNPACK),
    (b"LZIP", "compressed with lzip", _UNPACK),
    (b"MSCF", "a cabinet archive", _UNPACK),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with `git lfs pull`"),
)
# How compressed tars begin.
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")


class _Member(NamedTuple):
    """What an archive says of one of its members.

    Attributes:
        name: as the archive has it.
        is_folder: whether it is a folder.
        wrong: why its content cannot be read; "" if it can.
    """

    name: str
    is_folder: bool
    wrong: str


class Source(abc.ABC):
    """Files below a folder or in an archive, named by their paths with "/" between folders."""

    def __init__(self, data: str):
        self.data = data

    @abc.abstractmethod
    def files(self) -> Found:
        """All that it holds.

        Raises:
            DataError: it cannot be read.
        """

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
    if "://" not in data and not os.path.isfile(data):
        raise DataError(f"{data}: {NOT_PLAIN}, but a pipe or device; {WANTED}")
    with _errors_named(data), _open(data) as file:
        beginning = file.read(512)
    for start, name, action in _OTHER_CONTENTS:
        if beginning.startswith(start):
            raise DataError(f"{data}: is {name}; {action}")
    if not data.lower().endswith(ARCHIVES):
        unpack = f"; {_UNPACK}" if may_be_archive(data) else ""
        raise DataError(f"{data}: {WANTED}{unpack}")
    if not beginning:
        raise DataError(f"{data}: the file is empty; {_AGAIN}")
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGES):
        raise DataError(f"{data}: is a web page, not an archive; {_AGAIN}, from the address of the file itself")
    if beginning.startswith(b"PK\3\4"):
        return _Zip(data)
    is_tar = beginning.startswith(tuple(_COMPRESSED)) or beginning[257:262] == b"ustar"
    return _Tar(data) if is_tar or not data.lower().endswith(".zip") else _Zip(data)


def list_photos(source: Source) -> Listing:
    """Finds the breeds and their photos; see `components.ingestion.photo_layout`.

    Raises:
        DataError: the source cannot be read, or its folders cannot be used as they are.
    """
    return find_breeds(source.data, source.files())


class _Folder(Source):
    """A folder. Local ones are read by Python itself, which knows links, pipes and names in any encoding."""

    def files(self):
        try:
            return self._walk_remote() if "://" in self.data else self._walk_local()
        except OSError as error:
            raise DataError(f"{error.filename or self.data}: cannot be read: {error.strerror or error}") from None
        except tf.errors.OpError as error:
            raise DataError(f"{self.data}: cannot be read: {error.message}") from None

    def _walk_local(self) -> Found:
        found, folders, seen = Found([], {}, [], []), [(False, "")], set()
        while folders:
            _, folder = folders.pop()
            real = os.path.realpath(os.path.join(self.data, folder))
            if real in seen:
                found.refused.append(Refused(folder, LINK_AGAIN))
                continue
            seen.add(real)
            for entry in self._entries(found, folder, lambda real=real: [*os.scandir(real)]):
                path = f"{folder}{entry.name}"
                if is_ignored(entry.name):
                    continue
                if os.path.isdir(entry):  # the entry's own method raises for a link to itself
                    folders.append((entry.is_symlink(), f"{path}/"))
                elif os.path.isfile(entry):
                    found.files.append(path)
                else:
                    found.refused.append(Refused(path, LINK_TO_NOTHING if entry.is_symlink() else NOT_PLAIN))
            folders.sort(reverse=True)  # links are followed last: a folder keeps its own name
        return found

    def _walk_remote(self) -> Found:
        found, folders = Found([], {}, [], []), [""]
        while folders:
            folder = folders.pop()
            for name in self._entries(found, folder, lambda at=folder: fileio.listdir(os.path.join(self.data, at))):
                name = name.rstrip("/")
                if is_ignored(name):
                    continue
                path = f"{folder}{name}"
                if fileio.isdir(os.path.join(self.data, path)):
                    folders.append(f"{path}/")
                else:
                    found.files.append(path)
        return found

    def _entries(self, found: Found, folder: str, entries: Callable[[], list]) -> list:
        """What is in a folder; one that cannot be read is recorded, unless it is the source itself."""
        try:
            inside, problem = entries(), ""
        except (OSError, tf.errors.OpError) as error:
            if not folder:
                raise
            inside, problem = [], f"cannot be read: {getattr(error, 'strerror', None) or error}"
        if folder:
            found.folders[folder.rstrip("/")] = problem
        return inside

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: self._content(path)

    def _content(self, path: str) -> bytes:
        return _first_bytes(lambda: _open(os.path.join(self.data, path)))

    def digest(self):
        digest = hashlib.sha256()
        found = self.files()
        for path in sorted(found.files):
            content = "unreadable"  # ingestion leaves it out and names it
            with contextlib.suppress(PhotoError):
                content = hashlib.sha256(self._content(path)).hexdigest()
            digest.update(f"{path}\0{content}\0".encode(errors="surrogateescape"))
        digest.update(repr((sorted(found.refused), sorted(found.folders.items()))).encode())
        return digest.hexdigest()


@contextlib.contextmanager
def _errors_named(data: str) -> Iterator[None]:
    """Makes what an archive raises a DataError that names the archive."""
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"{data}: the archive is damaged or cut off: {error}") from None
    except (OSError, tf.errors.OpError) as error:
        is_content = isinstance(error, OSError) and error.errno is None  # bz2 finds that its stream is damaged
        problem = "the archive is damaged or cut off" if is_content else "cannot be read"
        raise DataError(f"{data}: {problem}: {error}") from None


class _Archive(Source):
    """An archive, read where it lies: nothing is ever unpacked to disk."""

    def digest(self):
        with _errors_named(self.data), _open(self.data) as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def _sort_out(self, members: Iterator[_Member]) -> Found:
        found, files = Found([], {}, [], []), set()
        for member in members:
            path = _plain(member.name)
            parts = path.split("/")
            if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
                found.refused.append(Refused(member.name, OUTSIDE))
                continue
            shown = [*itertools.takewhile(lambda part: not is_ignored(part), parts)]
            is_hidden = len(shown) < len(parts)
            if above := "/".join(shown if is_hidden or member.is_folder else shown[:-1]):
                found.folders[above] = ""
            if is_hidden or member.is_folder:
                continue
            if member.wrong:
                found.refused.append(Refused(path, member.wrong))
            elif path in files:
                found.refused.append(Refused(path, "the archive has this name twice; the first is read"))
            else:
                files.add(path)
        return found._replace(files=list(files))


class _Zip(_Archive):
    """A zip: its members are read in any order."""

    def files(self):
        members = (_Member(name, _is_folder(info), _wrong(info)) for name, info in self._named)
        found = self._sort_out(members)
        for path in sorted(found.files):
            if (method := self._members[path].compress_type) not in _UNPACKED:
                name = zipfile.compressor_names.get(method, f"number {method}")
                raise DataError(
                    f"{self.data}: cannot be unpacked: {printable(path)} is compressed by the method {name}. Unpack "
                    "the archive with the program that made it; then pass the folder, or pack it as .tar.gz"
                )
        unclear = sorted(path for path in found.files if path in self._guessed)
        return found._replace(warnings=[_NAMES_GUESSED.format(len(unclear), printable(unclear[0]))] if unclear else [])

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: _first_bytes(lambda: self._archive.open(self._members[path]))

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        with _errors_named(self.data):
            return zipfile.ZipFile(_open(self.data))

    @functools.cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        wanted = (pair for pair in reversed(self._named) if not (_is_folder(pair[1]) or _wrong(pair[1])))
        return {_plain(name): info for name, info in wanted}

    @functools.cached_property
    def _guessed(self) -> set[str]:
        """Paths that may not be what their author wrote."""
        return {_plain(name) for name, info in self._named if not (_is_utf_8(info) or _utf_8_name(info))}

    @functools.cached_property
    def _named(self) -> list[tuple[str, zipfile.ZipInfo]]:
        return [(_utf_8_name(info) or info.filename, info) for info in self._archive.infolist()]


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(("/", "\\"))


def _wrong(info: zipfile.ZipInfo) -> str:
    return LINK if stat.S_ISLNK(info.external_attr >> 16) else ENCRYPTED if info.flag_bits & 1 else ""


def _is_utf_8(info: zipfile.ZipInfo) -> bool:
    """Whether the archive says that the name is UTF-8, or it is ASCII."""
    return bool(info.flag_bits & 0x800) or info.filename.isascii()


def _utf_8_name(info: zipfile.ZipInfo) -> str:
    """The name if it is UTF-8 though the archive does not say so, as macOS writes it; else ""."""
    if _is_utf_8(info):
        return info.filename
    try:
        return info.filename.encode("cp437").decode()  # zipfile has read its bytes as CP437
    except UnicodeDecodeError:
        return ""


class _Tar(_Archive):
    """A tar, compressed or not: it can only be read from its beginning to its end."""

    def files(self):
        def members(archive: tarfile.TarFile) -> Iterator[_Member]:
            for info in archive:
                is_link = info.islnk() or info.issym()
                is_plain = info.isfile() or info.isdir()
                yield _Member(info.name, info.isdir(), "" if is_plain else LINK if is_link else NOT_PLAIN)

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
        with _errors_named(self.data), _open(self.data) as file:
            start = file.read(6)
            file.seek(0)
            # tarfile itself ignores the checksum of gzip, and reads no second stream of bzip2 or xz.
            unpacked = next((unpack for beginning, unpack in _COMPRESSED.items() if start.startswith(beginning)), None)
            content = unpacked(file) if unpacked else file
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_Header, ignore_zeros=True) as archive:
                yield archive
            while content.read(2**20):  # on to the checksum
                pass


class _Header(tarfile.TarInfo):
    """A header that is missing or damaged is an error; tarfile would take it for the end of the archive.

    After blocks of zeros, which end an archive, the file may end, or another archive may follow that was joined to it.
    """

    @classmethod
    def fromtarfile(cls, archive):
        try:
            info = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            archive.is_ended = True
            raise
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EmptyHeaderError) and getattr(archive, "is_ended", False):
                raise
            raise tarfile.ReadError(str(error)) from None
        archive.is_ended = False
        return info


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
