"""Photo sources: folders and archives give the same photos, and damaged or malicious contents are handled safely."""

import gzip
import io
import itertools
import os
import random
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx.dsl.io import fileio

from components.errors import DataError
from components.ingestion import photo_source
from components.ingestion.photo_layout import Excluded
from components.ingestion.photo_source import Source, list_photos, open_source
from serving.photo_normalization import MAX_BYTES, PhotoError

FOLDERS = ("folder", "ram folder")
ZIPS = (".zip", "ram .zip")
TARS = (".tar", ".tar.gz", ".tgz", "ram .tar.gz")
ARCHIVES = (*ZIPS, *TARS)
KINDS = (*FOLDERS, *ARCHIVES)
PHOTOS = {
    "Birman/1.jpg": b"first",
    "Birman/two words.JPG": b"second",
    "Größe 1/ä.png": bytes(range(256)),
    "Sphynx/1.jpg": b"another first",
    "Sphynx/empty.jpg": b"",
    "Sphynx/no ending": b"\r\n",
}
BIRMAN = {"Birman/1.jpg": b"first"}
LINK = {"external_attr": (stat.S_IFLNK | 0o777) << 16}
ENCRYPTED = {"flag_bits": 1}
EXPECTED_LAYOUT = r"expected a folder or an archive \(\.zip, \.tar\.gz\) with one folder of photos per breed"

every_kind = pytest.mark.parametrize("kind", KINDS)
every_archive = pytest.mark.parametrize("kind", ARCHIVES)
every_folder = pytest.mark.parametrize("kind", FOLDERS)


def zipped(members: Iterable[tuple], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Zip of members given as (name, content) or (name, content, attributes of the ZipInfo)."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content, *special in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, content)
            for attribute, value in dict(*special).items():
                setattr(info, attribute, value)
    return packed.getvalue()


def tarred(members: Iterable[tuple], compression: str = "gz") -> bytes:
    """Tar of members given as (name, content) or (name, content, type of member)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as archive:
        for name, content, *special in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if special:
                info.type, info.linkname = special[0], "Birman/1.jpg"
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def packed(kind: str, members: Iterable[tuple]) -> bytes:
    return zipped(members) if kind.endswith("zip") else tarred(members, "" if kind.endswith(".tar") else "gz")


class Writer:
    """Callable that writes a source of any kind to a new path and returns its address."""

    def __init__(self, folder: Path):
        self._paths = (folder / f"source{number}" for number in itertools.count())

    def __call__(self, kind: str, files: Iterable[tuple] | dict[str, bytes]) -> str:
        files = list(files.items() if isinstance(files, dict) else files)
        if kind in ARCHIVES:
            return self.archive(kind, packed(kind, files))
        path = self._new_path(kind)
        for name, content in files:
            _write(f"{path}/{name}", content)
        return path

    def archive(self, kind: str, content: bytes) -> str:
        path = self._new_path(kind) + kind.removeprefix("ram ")
        _write(path, content)
        return path

    def _new_path(self, kind: str) -> str:
        return f"ram:/{next(self._paths)}" if kind.startswith("ram ") else str(next(self._paths))


def _write(path: str, content: bytes) -> None:
    if "://" in path:
        fileio.makedirs(os.path.dirname(path))
        with fileio.open(path, "wb") as file:
            file.write(content)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)


@pytest.fixture
def write(tmp_path):
    return Writer(tmp_path)


def contents(source: Source) -> dict[str, bytes]:
    """Read every photo and check that each is read once."""
    paths = [*list_photos(source).photos]
    result = [(path, fetch()) for path, fetch in source.read(paths)]
    assert sorted(path for path, _ in result) == paths
    return dict(result)


def excluded(data: str) -> dict[str, str]:
    return dict(list_photos(open_source(data)).excluded)


@every_kind
def test_every_kind_of_source_lists_the_same_photos_and_reads_the_same_bytes(write, kind):
    source = open_source(write(kind, PHOTOS))
    photos = {path: path.split("/")[0] for path in sorted(PHOTOS)}
    assert list_photos(source) == (photos, [], [], [])
    assert [*list_photos(source).photos] == [*photos]
    assert contents(source) == PHOTOS


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_any_supported_compression_is_read(write, compression):
    assert contents(open_source(write.archive(".zip", zipped(PHOTOS.items(), compression)))) == PHOTOS


@pytest.mark.parametrize("suffix", [".ZIP", ".Tar.GZ", ".TGZ"])
def test_the_suffix_of_an_archive_may_be_in_upper_case(write, suffix):
    data = write.archive(suffix, packed(suffix.lower(), PHOTOS.items()))
    assert contents(open_source(data)) == PHOTOS


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_a_folder_with_an_archive_suffix_is_read_as_a_folder(tmp_path, kind):
    _write(f"{tmp_path}/photos{kind}/Birman/1.jpg", b"first")
    assert contents(open_source(f"{tmp_path}/photos{kind}")) == BIRMAN


@every_kind
def test_only_the_requested_photos_are_read(write, kind):
    result = open_source(write(kind, PHOTOS)).read(["Sphynx/1.jpg", "Birman/1.jpg"])
    assert {path: fetch() for path, fetch in result} == {"Sphynx/1.jpg": b"another first", "Birman/1.jpg": b"first"}


@every_kind
@pytest.mark.parametrize("parent", ["cats/", "cats/Breeds 2/"])
@pytest.mark.parametrize("extra", [[], ["README"], ["README", "cats/README"]], ids=len)
def test_breed_folders_below_other_folders_are_found(write, kind, parent, extra):
    source = open_source(write(kind, {parent + path: b"x" for path in PHOTOS} | dict.fromkeys(extra, b"Hello")))
    assert list_photos(source).photos == {parent + path: path.split("/")[0] for path in sorted(PHOTOS)}
    assert {path for path, _ in list_photos(source).excluded} == {*extra}


@every_kind
def test_files_outside_the_breed_folders_are_excluded_and_reported(write, kind):
    strays = ["loose.jpg", "README", "Sphynx/list/a.csv"]
    source = open_source(write(kind, PHOTOS | dict.fromkeys(strays, b"x")))
    assert list_photos(source).excluded == [Excluded(path, "not directly in a breed folder") for path in sorted(strays)]
    assert contents(source) == PHOTOS


@every_kind
def test_system_files_next_to_photos_are_ignored_silently(write, kind):
    names = ["Thumbs.db", "Desktop.ini", ".DS_Store", "._1.jpg", ".git/config", "__MACOSX/Birman/._1.jpg"]
    names += [".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg/SYNO.jpg", "$RECYCLE.BIN/1.jpg", "lost+found/1.jpg"]
    hidden = [f"{folder}{name}" for folder in ("", "Birman/") for name in names]
    source = open_source(write(kind, PHOTOS | dict.fromkeys(hidden, b"x")))
    assert list_photos(source).excluded == []
    assert contents(source) == PHOTOS


def test_folders_that_a_file_system_lists_with_a_trailing_slash_are_read(write, monkeypatch):
    data = write("ram folder", PHOTOS | {"__MACOSX/1.jpg": b"", ".hidden/1.jpg": b""})
    listed, isdir = fileio.listdir, fileio.isdir
    monkeypatch.setattr(
        fileio, "listdir", lambda at: [name + "/" * isdir(os.path.join(at, name)) for name in listed(at)]
    )
    assert "Birman/" in fileio.listdir(data)
    assert contents(open_source(data)) == PHOTOS


@pytest.mark.parametrize("kind", ["folder", *TARS])
def test_names_that_are_not_utf_8_are_read(write, kind):
    files = {**BIRMAN, os.fsdecode(b"Birman/\xff.jpg"): b"2", os.fsdecode(b"Gr\xf6\xdfe/1.jpg"): b"3"}
    source = open_source(write(kind, files))
    assert contents(source) == files
    assert source.digest() == source.digest()


@every_archive
@pytest.mark.parametrize("name", ["./Birman/1.jpg", "Birman//1.jpg", "Birman/./1.jpg", r"Birman\1.jpg"])
def test_paths_in_archives_are_normalized(write, kind, name):
    assert contents(open_source(write(kind, [(name, b"first")]))) == BIRMAN


@pytest.mark.parametrize("kind", ZIPS)
def test_folders_in_a_zip_are_not_read_as_files(write, kind):
    data = write(kind, [("Birman/", b""), ("Sphynx\\", b""), ("Sphynx\\new\\", b""), *PHOTOS.items()])
    assert excluded(data) == {}
    assert contents(open_source(data)) == PHOTOS


NAMES_OUTSIDE_ARCHIVE = (
    "../x",
    "../../.x",
    "{}/abs.jpg",
    "/../x",
    "C:\\x",
    "C:/Birman/x",
    "a\\..\\..\\x",
    "Birman/../../x",
)


@every_archive
@pytest.mark.parametrize(
    "names",
    [NAMES_OUTSIDE_ARCHIVE[:2], NAMES_OUTSIDE_ARCHIVE[2:4], NAMES_OUTSIDE_ARCHIVE[4:6], NAMES_OUTSIDE_ARCHIVE[6:]],
)
def test_members_that_point_outside_the_archive_are_excluded_and_nothing_is_unpacked(
    write, kind, names, tmp_path, monkeypatch
):
    for name in ("working", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    names = [name.format(tmp_path) for name in names]
    data = write(kind, [*((name, b"bad") for name in names), *PHOTOS.items()])
    before = sorted(tmp_path.rglob("*"))
    source = open_source(data)
    assert dict(list_photos(source).excluded) == dict.fromkeys(names, "its path points outside the archive")
    assert contents(source) == PHOTOS
    assert source.digest()
    assert sorted(tmp_path.rglob("*")) == before


@every_archive
def test_a_breed_whose_photos_all_point_outside_the_archive_stops_the_run(write, kind):
    data = write(kind, [*((f"../Manx/{number}.jpg", b"x") for number in range(3)), *PHOTOS.items()])
    with pytest.raises(
        DataError, match=r"have no usable photos:\n  3 files outside the breed folders: \.\./Manx/0\.jpg"
    ):
        list_photos(open_source(data))


@pytest.mark.parametrize("name", ["Manx", "Manx v.2", "Manx.v2", "Manx.old cats"])
@pytest.mark.parametrize("what", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_with_the_name_of_a_breed_in_a_tar_stops_the_run(write, name, what):
    data = write(".tar", [(name, b"", what), *PHOTOS.items()])
    with pytest.raises(
        DataError,
        match=rf"have no usable photos:\n  {name}: (a link, which is not followed in archives|not a regular file)\n",
    ):
        list_photos(open_source(data))


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_all_photos_of_concatenated_tars_are_read(write, kind, compression):
    parts = [dict([photo]) for photo in PHOTOS.items()]
    joined = b"".join(tarred(part.items(), compression) for part in parts)
    assert contents(open_source(write.archive(kind, joined))) == PHOTOS


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
def test_concatenated_tars_with_a_damaged_or_truncated_last_part_stop_the_run(write, kind):
    first, second = (tarred({path: bytes(2000)}.items(), "") for path in ("Birman/1.jpg", "Manx/1.jpg"))
    for damaged in (b"\xff" * 512, second[:100], second[:1000], b"\xff" + second[1:]):
        content = first + damaged
        data = write.archive(kind, content if kind == ".tar" else gzip.compress(content))
        with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
            list_photos(open_source(data))


@pytest.mark.parametrize("kind", ZIPS)
def test_links_and_encrypted_members_of_a_zip_are_excluded(write, kind):
    special = [("Birman/l.jpg", b"1.jpg", LINK), ("Birman/e.jpg", b"x", ENCRYPTED), ("Birman/.l", b"x", LINK)]
    data = write(kind, [*special, *PHOTOS.items()])
    assert excluded(data) == {
        "Birman/l.jpg": "a link, which is not followed in archives",
        "Birman/e.jpg": photo_source.ENCRYPTED,
    }
    assert contents(open_source(data)) == PHOTOS


@pytest.mark.parametrize("kind", TARS)
def test_links_and_devices_in_a_tar_are_excluded(write, kind):
    types = {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "f": tarfile.FIFOTYPE, "c": tarfile.CHRTYPE}
    data = write(kind, [*((f"Birman/{name}", b"", what) for name, what in types.items()), *PHOTOS.items()])
    assert excluded(data) == {
        "Birman/s": "a link, which is not followed in archives",
        "Birman/h": "a link, which is not followed in archives",
        "Birman/f": "not a regular file",
        "Birman/c": "not a regular file",
    }
    assert contents(open_source(data)) == PHOTOS


@every_archive
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_first_of_several_members_with_the_same_name_is_read(write, kind):
    data = write(kind, [*PHOTOS.items(), ("Birman/1.jpg", b"later"), ("./Birman/1.jpg", b"last")])
    repeated = Excluded("Birman/1.jpg", "a repeated name in the archive; only the first entry is read")
    assert list_photos(open_source(data)).excluded == [repeated, repeated]
    assert contents(open_source(data)) == PHOTOS


@pytest.mark.parametrize(
    ("kind", "special"), [(".zip", LINK), (".zip", ENCRYPTED), *((kind, tarfile.SYMTYPE) for kind in TARS)]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_photo_is_read_even_if_a_link_has_the_same_name(write, kind, special):
    data = write(kind, [("Birman/1.jpg", b"", special), *PHOTOS.items(), ("Birman/1.jpg", b"", special)])
    assert [path for path, _ in list_photos(open_source(data)).excluded] == ["Birman/1.jpg"] * 2
    assert contents(open_source(data)) == PHOTOS


@pytest.mark.timeout(60)
def test_circular_links_do_not_cause_an_endless_loop(write):
    data = Path(write("folder", PHOTOS))
    (data / "Birman" / "up").symlink_to(data)
    (data / "Birman" / "itself").symlink_to("itself")
    (data / "Birman" / "other").symlink_to("../Sphynx")
    (data / "Sphynx" / "other").symlink_to("../Birman")
    reason = "a link to a folder that has already been read"
    assert excluded(str(data)) == {
        "Birman/up/": reason,
        "Birman/other/": reason,
        "Sphynx/other/": reason,
        "Birman/itself": "a broken link",
    }
    assert contents(open_source(str(data))) == PHOTOS


def test_linked_folders_and_photos_are_read(write, tmp_path):
    data, elsewhere = Path(write("folder", BIRMAN)), Path(write("folder", {"Manx/1.jpg": b"linked"}))
    (data / "Manx cat").symlink_to(elsewhere / "Manx")
    (data / "Birman" / "2.jpg").symlink_to(elsewhere / "Manx" / "1.jpg")
    (tmp_path / "link").symlink_to(data)
    assert contents(open_source(f"{tmp_path}/link")) == {
        **BIRMAN,
        "Birman/2.jpg": b"linked",
        "Manx cat/1.jpg": b"linked",
    }


@pytest.mark.parametrize("target", ["Sphynx", "nowhere"])
def test_a_link_that_may_be_a_breed_but_has_no_photos_stops_the_run(write, target):
    data = Path(write("folder", PHOTOS))
    (data / "Abyssinian").symlink_to(target)
    with pytest.raises(DataError, match=r"have no usable photos:\n  Abyssinian/?: a (broken link|link to a folder)"):
        list_photos(open_source(str(data)))


@pytest.mark.timeout(60)
def test_broken_links_and_pipes_are_excluded_without_blocking(write):
    data = write("folder", PHOTOS)
    os.symlink("nowhere", f"{data}/Birman/2.jpg")
    os.mkfifo(f"{data}/Birman/3.jpg")
    os.symlink("3.jpg", f"{data}/Birman/.4.jpg")
    assert excluded(data) == {"Birman/2.jpg": "a broken link", "Birman/3.jpg": "not a regular file"}
    assert contents(open_source(data)) == PHOTOS
    assert open_source(data).digest()


def test_a_huge_file_is_read_only_up_to_the_limit(write):
    data = write("folder", BIRMAN)
    os.truncate(f"{data}/Birman/1.jpg", 2 * MAX_BYTES)
    assert len(contents(open_source(data))["Birman/1.jpg"]) == MAX_BYTES + 1


@every_kind
def test_at_most_one_byte_more_than_the_limit_is_read(write, kind, monkeypatch):
    monkeypatch.setattr(photo_source, "MAX_BYTES", 1000)
    lengths = {"Birman/0.jpg": 999, "Birman/1.jpg": 1000, "Birman/2.jpg": 1001, "Birman/3.jpg": 100_000}
    photos = contents(open_source(write(kind, {path: bytes(length) for path, length in lengths.items()})))
    assert [len(content) for _, content in sorted(photos.items())] == [999, 1000, 1001, 1001]


@pytest.mark.parametrize("kind", ZIPS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("offset", [0, 300])
def test_a_damaged_member_of_a_zip_is_unreadable_and_the_others_are_read(write, kind, compression, offset):
    files = {f"Birman/{number}.jpg": bytes(random.Random(number).choices(b"photo", k=3000)) for number in range(5)}
    content = bytearray(zipped(files.items(), compression))
    start = content.index(b"Birman/2.jpg") + len("Birman/2.jpg") + offset
    content[start : start + 100] = b"\xff" * 100
    readers = dict(open_source(write.archive(kind, content)).read([*files]))
    with pytest.raises(PhotoError, match="cannot be read") as caught:
        readers.pop("Birman/2.jpg")()
    assert caught.value.kind == "unreadable"
    assert {path: fetch() for path, fetch in readers.items()} == {
        path: files[path] for path in files if path != "Birman/2.jpg"
    }


def test_a_zip_member_with_a_damaged_header_is_unreadable(write):
    header = "Größe 1/ä.png".encode()
    content = zipped(PHOTOS.items()).replace(header, b"\xff" * len(header), 1)
    readers = dict(open_source(write.archive(".zip", content)).read([*PHOTOS]))
    with pytest.raises(PhotoError, match="cannot be read"):
        readers["Größe 1/ä.png"]()
    assert readers["Birman/1.jpg"]() == b"first"


@pytest.mark.parametrize(
    "attributes", [{"compress_type": 9}, {"file_size": 10**6, "compress_size": 10**6}], ids=["compression", "length"]
)
@pytest.mark.parametrize("kind", ZIPS)
def test_a_zip_member_with_unsupported_attributes_is_unreadable(write, kind, attributes):
    data = write(kind, [("Birman/0.jpg", b"zero", attributes), *PHOTOS.items()])
    readers = dict(open_source(data).read(["Birman/0.jpg", "Birman/1.jpg"]))
    with pytest.raises(PhotoError, match="cannot be read") as caught:
        readers["Birman/0.jpg"]()
    assert caught.value.kind == "unreadable"
    assert readers["Birman/1.jpg"]() == b"first"


@every_folder
def test_a_photo_that_is_deleted_before_it_is_read_is_unreadable_and_the_others_are_read(write, kind):
    data = write(kind, PHOTOS)
    readers = dict(open_source(data).read(sorted(PHOTOS)))
    fileio.remove(f"{data}/Birman/1.jpg")
    with pytest.raises(PhotoError) as caught:
        readers["Birman/1.jpg"]()
    assert caught.value.kind == "unreadable"
    assert readers["Sphynx/1.jpg"]() == b"another first"


@every_archive
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.8])
def test_a_truncated_archive_stops_the_run(write, kind, share):
    whole = packed(kind, [(f"Birman/{number}.jpg", random.Random(number).randbytes(2000)) for number in range(20)])
    data = write.archive(kind, whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
        list_photos(open_source(data))


@every_archive
def test_an_archive_truncated_to_its_first_bytes_stops_the_run(write, kind):
    whole = packed(kind, BIRMAN.items())
    for length in range(1, 40):
        data = write.archive(kind, whole[:length])
        with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
            list_photos(open_source(data))


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("extra", [0, 100, 512, 512 + 100, 1024])
def test_a_tar_that_is_truncated_near_the_end_of_a_photo_stops_the_run(write, kind, extra):
    whole = tarred([(f"Birman/{number}.jpg", bytes(1024)) for number in range(3)], "")
    content = whole[: 2 * (512 + 1024) + extra]
    assert len(content) < 3 * (512 + 1024)
    data = write.archive(kind, content if kind.endswith(".tar") else gzip.compress(content))
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
        list_photos(open_source(data))


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
def test_a_tar_that_is_damaged_between_photos_stops_the_run(write, kind):
    content = bytearray(tarred([(f"Birman/{number}.jpg", bytes(1024)) for number in range(3)], ""))
    content[512 + 1024 + 150] ^= 1
    data = write.archive(kind, content if kind.endswith(".tar") else gzip.compress(content))
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
        list_photos(open_source(data))


@pytest.mark.parametrize("kind", [".tar.gz", ".tgz", "ram .tar.gz"])
def test_a_compressed_tar_with_a_flipped_bit_fails_when_listed_and_when_read(write, kind):
    files = {f"Birman/{number}.jpg": random.Random(number).randbytes(2000) for number in range(20)}
    content = bytearray(packed(kind, files.items()))
    content[20_000] ^= 1
    source = open_source(write.archive(kind, content))
    for use in (source.contents, lambda: [*source.read([*files])]):
        with pytest.raises(DataError, match=rf"^{source.data}: the archive is damaged or truncated: "):
            use()


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("kind", [".tar", ".tgz", "ram .tar.gz"])
def test_the_compression_of_a_tar_is_detected_from_its_content(write, kind, compression):
    assert contents(open_source(write.archive(kind, tarred(PHOTOS.items(), compression)))) == PHOTOS


@every_archive
def test_a_file_with_an_archive_suffix_but_random_content_stops_the_run(write, kind):
    data = write.archive(kind, random.Random(0).randbytes(50_000))
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
        list_photos(open_source(data))


OTHER_CONTENTS = [
    (b"Rar!\x1a\x07\x01\0", "is a RAR archive; unpack it and pass the folder"),
    (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive; unpack it"),
    (b"\x28\xb5\x2f\xfd\x04", "is compressed with Zstandard; unpack it"),
    (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>", "is a web page, not an archive; download it again"),
    (b"<html>Not found</html>", "is a web page, not an archive; download it again"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"", "the file is empty; download it again"),
]


@every_archive
@pytest.mark.parametrize(("content", "message"), OTHER_CONTENTS, ids=[message for _, message in OTHER_CONTENTS])
def test_an_unsupported_format_is_reported_with_a_remedy(write, kind, content, message):
    data = write.archive(kind, content)
    with pytest.raises(DataError, match=rf"^{data}: {message}"):
        open_source(data)


@pytest.mark.parametrize("kind", ["ram .zip", ".zip", ".tar.gz", ".tar"])
def test_a_zip_with_a_tar_suffix_and_a_tar_with_a_zip_suffix_are_read(write, kind):
    for content in (zipped(PHOTOS.items()), tarred(PHOTOS.items()), tarred(PHOTOS.items(), "")):
        assert contents(open_source(write.archive(kind, content))) == PHOTOS


@pytest.mark.timeout(60)
def test_a_pipe_as_data_is_rejected_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "photos.zip")
    with pytest.raises(DataError, match=r"photos\.zip: a pipe or device, not a regular file; expected a folder"):
        open_source(f"{tmp_path}/photos.zip")


@pytest.mark.parametrize("name", ["a.rar", "a.7z", "a.tar.zst", "a.zip.001", "a.part1.RAR", "a.r00", "a.z01", "a.txz"])
def test_the_error_for_an_unsupported_archive_suggests_unpacking_it(tmp_path, name):
    _write(f"{tmp_path}/{name}", b"x")
    with pytest.raises(
        DataError, match=rf"{name}: unsupported file type; {EXPECTED_LAYOUT}; unpack it and pass the folder"
    ):
        open_source(f"{tmp_path}/{name}")


def test_a_zip_of_an_unknown_version_stops_the_run(write):
    data = write(".zip", [("Birman/1.jpg", b"first", {"extract_version": 99})])
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: .*version 9\.9"):
        list_photos(open_source(data))


def test_a_zip_with_a_damaged_central_directory_stops_the_run(write):
    content = zipped(PHOTOS.items()).replace("Größe 1/ä.png".encode(), b"\xff" * len("Größe 1/ä.png".encode()))
    data = write.archive(".zip", content)
    with pytest.raises(DataError, match=rf"^{data}: the archive is damaged or truncated: "):
        list_photos(open_source(data))


@every_archive
def test_an_archive_without_read_permission_stops_the_run(write, kind, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    source = open_source(write(kind, PHOTOS))
    monkeypatch.setattr(photo_source, "_open", forbidden)
    for use in (source.digest, source.contents):
        with pytest.raises(DataError, match=rf"^{source.data}: cannot be read: .*Permission denied"):
            use()


@every_folder
def test_a_deleted_folder_stops_the_run(write, kind):
    source = open_source(write(kind, PHOTOS))
    fileio.rmtree(source.data)
    for use in (source.digest, source.contents):
        with pytest.raises(DataError, match=rf"^{source.data}: cannot be read: "):
            use()


def test_an_error_of_a_remote_file_system_stops_the_run(write, monkeypatch):
    def fail(_):
        raise tf.errors.UnavailableError(None, None, "try again later")

    source = open_source(write("ram folder", PHOTOS))
    monkeypatch.setattr(fileio, "listdir", fail)
    with pytest.raises(DataError, match=rf"^{source.data}: cannot be read: try again later"):
        list_photos(source)


@every_kind
@pytest.mark.parametrize("hidden", ["Birman/.1.jpg", ".hidden/1.jpg", "__MACOSX/Birman/1.jpg"])
def test_the_error_for_a_source_without_photos_describes_the_expected_layout(write, kind, hidden):
    data = write(kind, {hidden: b""})
    detail = r" \(Birman/: contains no visible files\)" if hidden.startswith("Birman") else ""
    with pytest.raises(DataError, match=rf"^{data}: no photos found{detail}; {EXPECTED_LAYOUT}"):
        list_photos(open_source(data))


@every_archive
def test_an_empty_archive_stops_the_run(write, kind):
    data = write(kind, {})
    with pytest.raises(
        DataError, match=rf"^{data}: (no photos found; {EXPECTED_LAYOUT}|the archive is damaged or truncated: )"
    ):
        list_photos(open_source(data))


@every_kind
@pytest.mark.parametrize("names", [["1.jpg"], ["1.jpg", "2.jpg"]], ids=["one", "two"])
def test_photos_without_breed_folders_stop_the_run_and_the_error_names_the_first(write, kind, names):
    data = write(kind, dict.fromkeys(names, b"x"))
    message = rf"^{data}: no photos found \({names[0]}: not directly in a breed folder\); {EXPECTED_LAYOUT}"
    with pytest.raises(DataError, match=message):
        list_photos(open_source(data))


def test_the_error_for_an_encrypted_zip_suggests_unpacking_it(write):
    data = write(".zip", [(path, content, ENCRYPTED) for path, content in PHOTOS.items()])
    with pytest.raises(
        DataError,
        match=r"no photos found \(Birman/: contains 2 files \(encrypted; unpack the archive with its password",
    ):
        list_photos(open_source(data))


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "nowhere.tar.gz", "nowhere/"])
@pytest.mark.parametrize("base", ["", "ram:/"], ids=["local", "ram"])
def test_the_error_for_a_missing_source_describes_the_expected_layout(tmp_path, base, name):
    data = f"{base}{tmp_path}/{name}"
    with pytest.raises(DataError, match=rf"^{data}: no such folder or archive; {EXPECTED_LAYOUT}"):
        open_source(data)


@pytest.mark.parametrize("name", ["cat.jpg", "photos.rar", "zip", "photos.zip.txt"])
@pytest.mark.parametrize("base", ["", "ram:/"], ids=["local", "ram"])
def test_the_error_for_an_unsupported_file_describes_the_expected_layout(tmp_path, base, name):
    data = f"{base}{tmp_path}/{name}"
    _write(data, b"x")
    with pytest.raises(DataError, match=rf"^{data}: unsupported file type; {EXPECTED_LAYOUT}"):
        open_source(data)


@pytest.mark.parametrize("data", ["https://example.org/photos.zip", "nonsense://photos"])
def test_the_error_for_an_unsupported_address_describes_the_expected_layout(data):
    with pytest.raises(DataError, match=rf"^{data}: cannot be opened: .* not implemented.*; {EXPECTED_LAYOUT}"):
        open_source(data)


@every_kind
def test_the_digest_changes_with_any_byte_name_or_file(write, kind):
    renamed = {path.replace("Sphynx/1", "Sphynx/2"): content for path, content in PHOTOS.items()}
    swapped = PHOTOS | {"Sphynx/1.jpg": PHOTOS["Birman/1.jpg"], "Birman/1.jpg": PHOTOS["Sphynx/1.jpg"]}
    changes = [
        PHOTOS,
        PHOTOS | {"Birman/1.jpg": b"First"},
        PHOTOS | {"Birman/1.jpg": b"first\0"},
        PHOTOS | {"Sphynx/empty.jpg": b"\0"},
        PHOTOS | {"Sphynx/2.jpg": b""},
        PHOTOS | {"loose.jpg": b""},
        BIRMAN,
        renamed,
        swapped,
    ]
    assert len({open_source(write(kind, files)).digest() for files in changes}) == len(changes)


@every_kind
def test_the_digest_does_not_depend_on_reading_or_on_the_address(write, kind):
    source = open_source(write(kind, PHOTOS))
    before = source.digest()
    contents(source)
    assert source.digest() == before
    assert open_source(source.data).digest() == before
    assert open_source(write(kind, PHOTOS)).digest() == before


@every_folder
def test_the_digest_and_the_listing_do_not_depend_on_the_order_of_files(write, kind, monkeypatch):
    source = open_source(write(kind, PHOTOS | {"loose.jpg": b"", "a.jpg": b""}))
    if kind == "folder":
        for name in "abc":
            os.symlink("nowhere", f"{source.data}/Birman/{name}")
    before = source.digest(), list_photos(source)
    scandir, listdir = os.scandir, fileio.listdir
    for order in (sorted, lambda names, key=None: sorted(names, key=key, reverse=True)):
        monkeypatch.setattr(os, "scandir", lambda at, order=order: order(scandir(at), key=lambda entry: entry.name))
        monkeypatch.setattr(fileio, "listdir", lambda at, order=order: order(listdir(at)))
        assert (source.digest(), list_photos(source)) == before
        assert [*list_photos(source).photos] == [*before[1].photos]


@every_folder
def test_hidden_files_do_not_change_the_digest(write, kind):
    hidden = {".DS_Store": b"x", "Birman/Thumbs.db": b"y", ".git/config": b"z"}
    assert open_source(write(kind, PHOTOS)).digest() == open_source(write(kind, PHOTOS | hidden)).digest()


def test_the_digest_of_a_folder_changes_with_its_unreadable_files(write):
    data = Path(write("folder", BIRMAN))
    digests = [open_source(str(data)).digest()]
    for name, target in (("2.jpg", "nowhere"), ("3.jpg", "/proc/self/mem")):
        (data / "Birman" / name).symlink_to(target)
        digests.append(open_source(str(data)).digest())
    (data / "Birman" / "3.jpg").rename(data / "Birman" / "4.jpg")
    digests.append(open_source(str(data)).digest())
    assert len(set(digests)) == 4
    (path, fetch), *_ = open_source(str(data)).read(["Birman/4.jpg"])
    with pytest.raises(PhotoError) as caught:
        fetch()
    assert (path, caught.value.kind) == ("Birman/4.jpg", "unreadable")


@every_kind
@pytest.mark.parametrize("photos", [1, 512, 513, 1100])
def test_chunks_contain_every_path_once_and_in_order(write, kind, photos):
    source = open_source(write(kind, BIRMAN))
    paths = [f"Birman/{number:04}.jpg" for number in range(photos)]
    chunks = source.chunks(paths)
    assert [path for chunk in chunks for path in chunk] == paths
    assert all(chunks)
    if kind in TARS:
        assert len(chunks) == 1
    else:
        assert max(map(len, chunks)) <= 512


@every_kind
@pytest.mark.parametrize("when", ["while the source is read", "after the source is read"])
def test_photos_are_read_correctly_by_many_threads(write, kind, when):
    rng = random.Random(0)
    files = {f"Birman/{number}.jpg": rng.randbytes(rng.randrange(50_000)) for number in range(150)}
    readers = open_source(write(kind, files)).read(sorted(files))
    if when == "after the source is read":
        readers = rng.sample([*readers], len(files))
    with ThreadPoolExecutor(16) as pool:
        futures = {path: pool.submit(fetch) for path, fetch in readers}
    assert {path: future.result() for path, future in futures.items()} == files


names = st.sampled_from(["Birman", "Sphynx", "1.jpg", "ä b", "README", ".h", "._1.jpg", "__MACOSX", "Thumbs.db"])
trees = st.recursive(st.binary(max_size=9), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12)


def flatten_tree(tree: dict, parent: str = "") -> dict[str, bytes]:
    files = {}
    for name, below in tree.items():
        files |= flatten_tree(below, f"{parent}{name}/") if isinstance(below, dict) else {parent + name: below}
    return files


def listing_or_error(source: Source) -> tuple | str:
    try:
        return list_photos(source), contents(source)
    except DataError as error:
        return str(error).removeprefix(source.data)


@given(tree=st.dictionaries(names, trees, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_every_file_is_a_photo_or_excluded_or_ignored_and_archives_agree_with_the_folder(tree):
    files = flatten_tree(tree)
    with tempfile.TemporaryDirectory() as folder:
        write = Writer(Path(folder))
        sources = {kind: open_source(write(kind, files)) for kind in ("folder", ".zip", ".tar") if files}
        outcomes = {kind: listing_or_error(source) for kind, source in sources.items()}
    hidden = {
        path for path in files if any(part[0] == "." or part in ("__MACOSX", "Thumbs.db") for part in path.split("/"))
    }
    for result in outcomes.values():
        assert result == outcomes["folder"]
        if isinstance(result, str):
            assert result.startswith((": no photos found", ": folders that may be breeds have no usable photos:"))
            continue
        (photos, excluded, warnings, _), read = result
        assert sorted([*photos, *(path for path, _ in excluded), *hidden]) == sorted(files)
        assert read == {path: files[path] for path in photos}
        assert photos == {path: path.split("/")[-2] for path in photos}
        assert len({path.count("/") for path in photos}) == 1
        assert warnings == []
