"""Photo sources: a folder or an archive, local or at any address that a TensorFlow file system supports."""

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
    BROKEN_LINK,
    EXPECTED_LAYOUT,
    LINK_IN_ARCHIVE,
    NOT_REGULAR_FILE,
    OUTSIDE_ARCHIVE,
    REPEATED_LINK,
    Excluded,
    PhotoListing,
    SourceContents,
    find_breeds,
    has_archive_suffix,
)
from serving.names import counted, is_ignored, printable
from serving.photo_normalization import MAX_BYTES, PhotoError
from serving.photo_origins import Origin, OriginsError, parse_origins

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
ENCRYPTED = "encrypted; unpack the archive with its password and pass the folder"

_PHOTOS_PER_CHUNK = 512
_ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# Exceptions raised while reading a damaged or truncated archive.
_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    tf.errors.InvalidArgumentError,  # zipfile seeks beyond the end of a remote file
)
_DAMAGED = "the archive is damaged or truncated"

_UNPACK = "unpack it and pass the folder"
_DOWNLOAD = "download it again"
# First bytes, description and remedy of files that may have the suffix of an archive but cannot be read.
_UNSUPPORTED_FORMATS = (
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", _UNPACK),
    (b"LZIP", "compressed with lzip", _UNPACK),
    (b"MSCF", "a cabinet archive", _UNPACK),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file with `git lfs pull`"),
)
# First bytes of compressed tars -> function that decompresses them.
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_WEB_PAGE_PREFIXES = (b"<!doctype", b"<html", b"<?xml", b"<head")


class _Member(NamedTuple):
    """An entry of an archive.

    Attributes:
        name: Name in the archive, not normalized.
        is_folder: Whether it is a folder.
        problem: Reason why its content cannot be read; "" if it can be read.
    """

    name: str
    is_folder: bool
    problem: str


class Source(abc.ABC):
    """Files in a folder or an archive, identified by their paths with "/" as separator."""

    def __init__(self, data: str):
        self.data = data

    @abc.abstractmethod
    def contents(self) -> SourceContents:
        """List all files and folders.

        Raises:
            DataError: If the source cannot be read.
        """

    @abc.abstractmethod
    def read(self, paths: Sequence[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield each of `paths` with a function that reads the file.

        Call each function once, from any thread; it raises PhotoError if the file cannot be read. It reads at most one
        byte more than a photo may have, so that larger files do not fill the memory.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 that changes when a file changes."""

    def chunks(self, paths: Sequence[str]) -> list[list[str]]:
        """Split `paths` into chunks that workers can read independently."""
        return [list(paths[start : start + _PHOTOS_PER_CHUNK]) for start in range(0, len(paths), _PHOTOS_PER_CHUNK)]


def open_source(data: str) -> Source:
    """Open the source at the address `data`.

    Raises:
        DataError: If there is no folder or supported archive at the address.
    """
    try:
        if not fileio.exists(data):
            raise DataError(f"{data}: no such folder or archive; {EXPECTED_LAYOUT}")
        if fileio.isdir(data):
            return _FolderSource(data)
    except tf.errors.OpError as error:
        raise DataError(f"{data}: cannot be opened: {error.message}; {EXPECTED_LAYOUT}") from None
    if "://" not in data and not os.path.isfile(data):
        raise DataError(f"{data}: a pipe or device, {NOT_REGULAR_FILE}; {EXPECTED_LAYOUT}")
    with _archive_errors_as_data_errors(data), _open(data) as file:
        header = file.read(512)
    for prefix, description, remedy in _UNSUPPORTED_FORMATS:
        if header.startswith(prefix):
            raise DataError(f"{data}: is {description}; {remedy}")
    if not data.lower().endswith(ARCHIVE_SUFFIXES):
        unpack = f"; {_UNPACK}" if has_archive_suffix(data) else ""
        raise DataError(f"{data}: unsupported file type; {EXPECTED_LAYOUT}{unpack}")
    if not header:
        raise DataError(f"{data}: the file is empty; {_DOWNLOAD}")
    if header.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE_PREFIXES):
        raise DataError(f"{data}: is a web page, not an archive; {_DOWNLOAD} from the URL of the file itself")
    if header.startswith(b"PK\3\4"):
        return _ZipSource(data)
    is_tar = header.startswith(tuple(_DECOMPRESSORS)) or header[257:262] == b"ustar"
    return _TarSource(data) if is_tar or not data.lower().endswith(".zip") else _ZipSource(data)


def list_photos(source: Source) -> PhotoListing:
    """List the photos of a source with their breeds; see `components.ingestion.photo_layout`.

    Raises:
        DataError: If the source cannot be read or its folder layout is not supported.
    """
    return find_breeds(source.data, source.contents())


def read_origins(source: Source, paths: Sequence[str]) -> dict[str, Origin]:
    """Read files of origins, see `serving.photo_origins`, and return all origins by file digest.

    Raises:
        DataError: If a file is damaged or cannot be read.
    """
    origins = {}
    for path, fetch in source.read(paths):
        name = f"{source.data}: {printable(path)}"
        try:
            origins |= parse_origins(fetch().decode(), name)
        except (PhotoError, UnicodeDecodeError) as error:
            raise DataError(f"{name}: {error}") from None
        except OriginsError as error:
            raise DataError(str(error)) from None
    return origins


class _FolderSource(Source):
    """A folder. Local folders are read with the `os` module, which handles links, pipes and names in any encoding."""

    def contents(self):
        try:
            return self._scan_remote() if "://" in self.data else self._scan_local()
        except OSError as error:
            raise DataError(f"{error.filename or self.data}: cannot be read: {error.strerror or error}") from None
        except tf.errors.OpError as error:
            raise DataError(f"{self.data}: cannot be read: {error.message}") from None

    def _scan_local(self) -> SourceContents:
        contents, folders, seen = SourceContents([], {}, [], []), [(False, "")], set()
        while folders:
            _, folder = folders.pop()
            real = os.path.realpath(os.path.join(self.data, folder))
            if real in seen:
                contents.excluded.append(Excluded(folder, REPEATED_LINK))
                continue
            seen.add(real)
            for entry in self._list_entries(contents, folder, lambda real=real: [*os.scandir(real)]):
                path = f"{folder}{entry.name}"
                if is_ignored(entry.name):
                    continue
                if os.path.isdir(entry):  # entry.is_dir() raises for a link to itself
                    folders.append((entry.is_symlink(), f"{path}/"))
                elif os.path.isfile(entry):
                    contents.files.append(path)
                else:
                    contents.excluded.append(Excluded(path, BROKEN_LINK if entry.is_symlink() else NOT_REGULAR_FILE))
            folders.sort(reverse=True)  # links are followed last, so that a folder keeps its own name
        return contents

    def _scan_remote(self) -> SourceContents:
        contents, folders = SourceContents([], {}, [], []), [""]
        while folders:
            folder = folders.pop()
            address = os.path.join(self.data, folder)
            for name in self._list_entries(contents, folder, lambda address=address: fileio.listdir(address)):
                name = name.rstrip("/")
                if is_ignored(name):
                    continue
                path = f"{folder}{name}"
                if fileio.isdir(os.path.join(self.data, path)):
                    folders.append(f"{path}/")
                else:
                    contents.files.append(path)
        return contents

    def _list_entries(self, contents: SourceContents, folder: str, list_folder: Callable[[], list]) -> list:
        """List a folder with `list_folder` and record it, with the error if it cannot be read.

        Errors of the top folder are raised.
        """
        try:
            entries, problem = list_folder(), ""
        except (OSError, tf.errors.OpError) as error:
            if not folder:
                raise
            entries, problem = [], f"cannot be read: {getattr(error, 'strerror', None) or error}"
        if folder:
            contents.folders[folder.rstrip("/")] = problem
        return entries

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: self._read_file(path)

    def _read_file(self, path: str) -> bytes:
        return _read_limited(lambda: _open(os.path.join(self.data, path)))

    def digest(self):
        digest = hashlib.sha256()
        contents = self.contents()
        for path in sorted(contents.files):
            content = "unreadable"  # ingestion excludes the file and reports it
            with contextlib.suppress(PhotoError):
                content = hashlib.sha256(self._read_file(path)).hexdigest()
            digest.update(f"{path}\0{content}\0".encode(errors="surrogateescape"))
        digest.update(repr((sorted(contents.excluded), sorted(contents.folders.items()))).encode())
        return digest.hexdigest()


@contextlib.contextmanager
def _archive_errors_as_data_errors(data: str) -> Iterator[None]:
    """Convert errors raised while reading an archive to DataErrors that name the archive."""
    try:
        yield
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{data}: {_DAMAGED}: {error}") from None
    except (OSError, tf.errors.OpError) as error:
        is_damaged = isinstance(error, OSError) and error.errno is None  # bz2 raises these for a damaged stream
        raise DataError(f"{data}: {_DAMAGED if is_damaged else 'cannot be read'}: {error}") from None


class _ArchiveSource(Source):
    """An archive, which is read in place and never unpacked to disk."""

    def digest(self):
        with _archive_errors_as_data_errors(self.data), _open(self.data) as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def _classify(self, members: Iterator[_Member]) -> SourceContents:
        contents, files = SourceContents([], {}, [], []), set()
        for member in members:
            path = _normalized_path(member.name)
            parts = path.split("/")
            if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
                contents.excluded.append(Excluded(member.name, OUTSIDE_ARCHIVE))
                continue
            visible = [*itertools.takewhile(lambda part: not is_ignored(part), parts)]
            is_hidden = len(visible) < len(parts)
            if folder := "/".join(visible if is_hidden or member.is_folder else visible[:-1]):
                contents.folders[folder] = ""
            if is_hidden or member.is_folder:
                continue
            if member.problem:
                contents.excluded.append(Excluded(path, member.problem))
            elif path in files:
                contents.excluded.append(Excluded(path, "a repeated name in the archive; only the first entry is read"))
            else:
                files.add(path)
        return contents._replace(files=list(files))


class _ZipSource(_ArchiveSource):
    """A zip archive, whose members can be read in any order."""

    def contents(self):
        members = (_Member(name, _is_folder(info), _problem(info)) for name, info in self._named_members)
        contents = self._classify(members)
        for path in sorted(contents.files):
            if (method := self._members[path].compress_type) not in _ZIP_COMPRESSIONS:
                name = zipfile.compressor_names.get(method, f"number {method}")
                raise DataError(
                    f"{self.data}: {printable(path)} uses the unsupported compression method {name}; unpack the "
                    "archive with the program that created it, then pass the folder or repack it as .tar.gz"
                )
        if uncertain := sorted(path for path in contents.files if path in self._uncertain_paths):
            contents.warnings.append(
                "file names in the archive that are not UTF-8 are decoded as CP437 "
                f"({counted(len(uncertain), 'name')}, for example {printable(uncertain[0])}); if the example is wrong, "
                "unpack the archive and pass the folder, or repack it with UTF-8 names"
            )
        return contents

    def read(self, paths):
        for path in paths:
            yield path, lambda path=path: _read_limited(lambda: self._archive.open(self._members[path]))

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        with _archive_errors_as_data_errors(self.data):
            return zipfile.ZipFile(_open(self.data))

    @functools.cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        # In reverse, so that the first of several members with the same name is kept.
        return {
            _normalized_path(name): info
            for name, info in reversed(self._named_members)
            if not (_is_folder(info) or _problem(info))
        }

    @functools.cached_property
    def _uncertain_paths(self) -> set[str]:
        """Paths whose encoding is unknown."""
        uncertain = (name for name, info in self._named_members if not (_is_utf_8(info) or _utf_8_name(info)))
        return {_normalized_path(name) for name in uncertain}

    @functools.cached_property
    def _named_members(self) -> list[tuple[str, zipfile.ZipInfo]]:
        return [(_utf_8_name(info) or info.filename, info) for info in self._archive.infolist()]


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(("/", "\\"))


def _problem(info: zipfile.ZipInfo) -> str:
    return LINK_IN_ARCHIVE if stat.S_ISLNK(info.external_attr >> 16) else ENCRYPTED if info.flag_bits & 1 else ""


def _is_utf_8(info: zipfile.ZipInfo) -> bool:
    """Whether the member has the UTF-8 flag or an ASCII name."""
    return bool(info.flag_bits & 0x800) or info.filename.isascii()


def _utf_8_name(info: zipfile.ZipInfo) -> str:
    """Return the name if it is valid UTF-8, else "". macOS writes UTF-8 names without the UTF-8 flag."""
    if _is_utf_8(info):
        return info.filename
    try:
        return info.filename.encode("cp437").decode()  # zipfile decodes names without the flag as CP437
    except UnicodeDecodeError:
        return ""


class _TarSource(_ArchiveSource):
    """A tar archive, compressed or not, which can only be read sequentially."""

    def contents(self):
        def members(archive: tarfile.TarFile) -> Iterator[_Member]:
            for info in archive:
                is_link = info.islnk() or info.issym()
                is_readable = info.isfile() or info.isdir()
                problem = "" if is_readable else LINK_IN_ARCHIVE if is_link else NOT_REGULAR_FILE
                yield _Member(info.name, info.isdir(), problem)

        with self._stream() as archive:
            return self._classify(members(archive))

    def read(self, paths):
        remaining = set(paths)
        with self._stream() as archive:
            for info in archive:
                path = _normalized_path(info.name)
                if info.isfile() and path in remaining:
                    remaining.remove(path)
                    with archive.extractfile(info) as file:
                        content = file.read(MAX_BYTES + 1)
                    yield path, lambda content=content: content

    def chunks(self, paths):
        return [list(paths)]

    @contextlib.contextmanager
    def _stream(self) -> Iterator[tarfile.TarFile]:
        with _archive_errors_as_data_errors(self.data), _open(self.data) as file:
            header = file.read(6)
            file.seek(0)
            # tarfile itself ignores the checksum of gzip and does not read a second stream of bzip2 or xz.
            decompress = next((open_ for prefix, open_ in _DECOMPRESSORS.items() if header.startswith(prefix)), None)
            content = decompress(file) if decompress else file
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_StrictTarInfo, ignore_zeros=True) as archive:
                yield archive
            while content.read(2**20):  # read to the end, where the checksum is verified
                pass


class _StrictTarInfo(tarfile.TarInfo):
    """TarInfo that raises an error for a missing or damaged header, which tarfile treats as the end of the archive.

    Blocks of zeros end an archive. After them, the file ends or an appended archive starts.
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


def _normalized_path(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _open(path: str) -> BinaryIO:
    return fileio.open(path, "rb") if "://" in path else open(path, "rb")


def _read_limited(open_file: Callable[[], BinaryIO]) -> bytes:
    """Read a file up to one byte more than a photo may have.

    Raises:
        PhotoError: If the file cannot be opened or read.
    """
    try:
        with open_file() as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, *_ARCHIVE_ERRORS, tf.errors.OpError) as error:
        raise PhotoError("unreadable", f"the file cannot be read: {error}") from None
