"""Folder layouts: a breed is never lost or split silently, and layouts of published data sets are supported."""

import io
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import DataError
from components.ingestion.photo_source import list_photos, open_source
from serving.names import is_ignored

KINDS = ("folder", ".zip", ".tar")
CONTENT = b"content of a photo"
BREEDS = ("Birman", "Manx", "Sphynx")
VALID_FILES = [f"{breed}/{number}.jpg" for breed in BREEDS for number in range(4)]
# Files that make Bombay unusable. Paths that end with "/" are empty folders.
UNUSABLE = {
    "empty": ["Bombay/"],
    "contains only hidden files": ["Bombay/.DS_Store", "Bombay/Thumbs.db"],
    "contains text": ["Bombay/urls.txt"],
    "contains archives": [f"Bombay/{number}.heic.zip" for number in range(12)],
    "contains videos": ["Bombay/1.mov", "Bombay/2.MP4", "Bombay/3.m4v"],
    "contains parts of archives": ["Bombay/1.7z", "Bombay/2.zip.001", "Bombay/3.zip.002"],
    "contains other files": ["Bombay/1.svg", "Bombay/a.tfrecord", "Bombay/a.tfrecord-00000-of-00010"],
    "is nested one level deeper": ["Bombay/photos/1.jpg", "Bombay/photos/2.jpg"],
    "is nested two levels deeper": ["Bombay/photos/raw/1"],
    "is split into train and test": ["Bombay/train/1.jpg", "Bombay/test/2.jpg"],
    "is in the folder of another breed": ["Manx/Bombay/1.jpg"],
    "consists of as many stray files as another breed has photos": [f"Bombay_{number}" for number in range(4)],
    "consists of fewer stray photos than another breed has": [f"Bombay_{number}.JPG" for number in range(3)],
    "is named like a metadata folder but has photos": ["data/1.jpg.zip"],
}
MESSAGES = {
    "empty": "Bombay/: contains no visible files",
    "contains only hidden files": "Bombay/: contains no visible files",
    "contains text": "Bombay/: contains 1 .txt file",
    "contains archives": "Bombay/: contains 12 .heic.zip files; unpack the archives",
    "contains videos": "Bombay/: contains 1 .mov file, 1 .mp4 file, 1 .m4v file",
    "contains parts of archives": "Bombay/: contains 1 .7z file, 1 .zip.001 file, 1 .zip.002 file; unpack the archives",
    "contains other files": "Bombay/: contains 1 .svg file, 1 .tfrecord file, 1 .tfrecord-00000-of-00010 file",
    "is nested one level deeper": "Bombay/: contains 1 folder with 2 files ('photos')",
    "is nested two levels deeper": "Bombay/: contains 1 folder with 1 file ('photos')",
    "is split into train and test": "Bombay/: contains 2 folders with 2 files ('test', 'train')",
    "is in the folder of another breed": "Manx/Bombay/: contains 1 .jpg file",
    "consists of as many stray files as another breed has photos": "4 files outside the breed folders: ",
    "consists of fewer stray photos than another breed has": "3 files outside the breed folders: ",
    "is named like a metadata folder but has photos": "data/: contains 1 .jpg.zip file",
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def write(folder: Path, kind: str, paths: list[str]) -> str:
    """Write a source with these files and return its address."""
    if kind == "folder":
        for path in paths:
            target = folder / "data" / path
            (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                target.write_bytes(CONTENT)
        return str(folder / "data")
    data = folder / f"data{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(data, "w") as archive:
            for path in paths:
                archive.writestr(path, b"" if path.endswith("/") else CONTENT)
    else:
        with tarfile.open(data, "w") as archive:
            for path in paths:
                info = tarfile.TarInfo(path.rstrip("/"))
                info.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
                info.size = 0 if path.endswith("/") else len(CONTENT)
                archive.addfile(info, io.BytesIO(CONTENT))
    return str(data)


def listing(folder: Path, kind: str, paths: list[str]):
    return list_photos(open_source(write(folder, kind, paths)))


def error_of(folder: Path, kind: str, paths: list[str]) -> str:
    with pytest.raises(DataError) as caught:
        listing(folder, kind, paths)
    return str(caught.value)


@every_kind
@pytest.mark.parametrize("parent", ["", "cats/images/"])
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_possible_breed_folder_without_photos_stops_the_run_and_its_contents_are_shown(tmp_path, kind, parent, case):
    message = error_of(tmp_path, kind, [parent + path for path in [*VALID_FILES, *UNUSABLE[case]]])
    line = message.splitlines()[1].strip()
    assert line.removeprefix(parent).startswith(MESSAGES[case])
    assert "Put the photos of each breed directly into its folder" in message


@every_kind
@pytest.mark.parametrize(
    "files", [["Bombay/"], ["Bombay/urls.txt"], ["Bombay/1.zip"], ["Bombay/1.jpg", "Bombay/2.jpg"]]
)
def test_a_folder_above_the_level_of_the_breed_folders_stops_the_run(tmp_path, kind, files):
    message = error_of(tmp_path, kind, [*(f"cats/{path}" for path in VALID_FILES), *files])
    assert ("cats/: contains 3 folders" if "Bombay/1.jpg" in files else "Bombay/: contains") in message


@pytest.mark.parametrize("parent", ["", "cats/"])
def test_an_unreadable_folder_stops_the_run_if_it_may_be_a_breed_and_is_excluded_otherwise(
    tmp_path, monkeypatch, parent
):
    data = write(tmp_path, "folder", [f"{parent}{path}" for path in [*VALID_FILES, "Bombay/1.jpg", "Manx/old/1.jpg"]])
    locked = {os.path.join(data, f"{parent}{name}") for name in ("Bombay", "Manx/old")}
    scandir = os.scandir

    def deny(path):
        if os.path.normpath(path) in locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match=rf"\n  {parent}Bombay/: cannot be read: Permission denied\nPut"):
        list_photos(open_source(data))
    locked.remove(os.path.join(data, f"{parent}Bombay"))
    result = list_photos(open_source(data))
    assert set(result.photos.values()) == {*BREEDS, "Bombay"}
    assert result.excluded == [(f"{parent}Manx/old/", "cannot be read: Permission denied")]
    assert open_source(data).digest() != open_source(write(tmp_path / "other", "folder", VALID_FILES)).digest()


@every_kind
@pytest.mark.parametrize("parent", ["", "cats/"])
def test_system_and_metadata_folders_do_not_stop_the_run(tmp_path, kind, parent):
    system_files = [
        ".git/1.jpg",
        "__MACOSX/Bombay/1.jpg",
        ".ipynb_checkpoints/1.jpg",
        "@eaDir/1/2.jpg",
        "Manx/@eaDir/1.jpg",
    ]
    metadata = ["data/cats.csv", "annotations/xml/1.xml", "Labels/1.txt", "docs/README.md"]
    result = listing(tmp_path, kind, [*(parent + path for path in [*VALID_FILES, *system_files]), *metadata])
    assert sorted(result.photos) == [parent + path for path in VALID_FILES]
    assert {path for path, _ in result.excluded} == {"data/", "annotations/", "Labels/", "docs/"}


@every_kind
def test_a_new_empty_folder_changes_the_digest(tmp_path, kind):
    before = open_source(write(tmp_path / "a" if kind == "folder" else tmp_path, kind, VALID_FILES)).digest()
    after = open_source(
        write(tmp_path / "b" if kind == "folder" else tmp_path, kind, [*VALID_FILES, "Bombay/"])
    ).digest()
    assert before != after


@every_kind
@pytest.mark.parametrize("parent", ["", "cats/"])
@pytest.mark.parametrize(
    "parts", [("train", "val", "test"), ("Training", "Validation"), ("train_images", "test_images")]
)
def test_existing_splits_are_merged_with_a_warning(tmp_path, kind, parent, parts):
    paths = [f"{parent}{part}/{part}_{path}".replace(f"{part}_", "", 1) for part in parts for path in VALID_FILES]
    result = listing(tmp_path, kind, [*paths, f"{parent}data/labels.csv"])
    assert result.photos == {path: path.split("/")[-2] for path in sorted(paths)}
    (warning,) = result.warnings
    assert "are read as one data set" in warning
    assert all(f"'{parent}{part}'" in warning for part in parts)


@every_kind
@pytest.mark.parametrize("flat", [["test/1.jpg", "test/2.jpg"], ["test/test/1.jpg"], ["test/"], ["test/1.zip"]])
@pytest.mark.parametrize("doubled", ["", "train/"])
def test_a_split_without_breed_folders_is_excluded_with_a_warning(tmp_path, kind, flat, doubled):
    paths = [f"train/{doubled}{path}" for path in VALID_FILES]
    result = listing(tmp_path, kind, [*paths, *flat, "sample_submission.csv"])
    assert sorted(result.photos) == sorted(paths)
    assert set(result.photos.values()) == set(BREEDS)
    assert [path for path, _ in result.excluded] == ["sample_submission.csv", "test/"]
    assert result.warnings == ["test/ is excluded: it has no breed folders"]


@every_kind
def test_splits_without_any_breed_folder_are_not_read_as_breeds(tmp_path, kind):
    assert "'test', 'train' are splits of a data set" in error_of(tmp_path, kind, ["train/1.jpg", "test/2.jpg"])


@every_kind
def test_a_split_that_shares_no_breed_with_the_other_splits_stops_the_run(tmp_path, kind):
    message = error_of(
        tmp_path, kind, [*(f"train/{path}" for path in VALID_FILES), "test/unknown/1.jpg", "test/unknown/2.jpg"]
    )
    assert "\n  test/: its folders ('unknown') are not in the other splits\n" in message
    assert "There are breed folders in test or train; to use them, pass that folder" in message


@every_kind
def test_photos_next_to_metadata_folders_are_read(tmp_path, kind):
    paths = [f"images/{path}" for path in VALID_FILES]
    result = listing(tmp_path, kind, [*paths, "data/cats.csv", "data/clean_metadata.csv"])
    assert sorted(result.photos) == sorted(paths)
    assert result.excluded == [("data/", "not a breed: contains 2 .csv files")]


@every_kind
def test_the_error_names_all_folders_that_contain_breed_folders(tmp_path, kind):
    message = error_of(tmp_path, kind, [f"{parent}/{path}" for parent in ("images", "resized") for path in VALID_FILES])
    assert "no photos found" in message
    assert "There are breed folders in images or resized; to use them, pass that folder" in message


@every_kind
@pytest.mark.parametrize(("photos", "stray", "stops"), [(29, 2, False), (30, 3, True), (31, 3, False), (31, 4, True)])
def test_stray_photos_stop_the_run_if_they_may_be_a_breed_and_give_a_warning_otherwise(
    tmp_path, kind, photos, stray, stops
):
    breed_photos = [f"{breed}/{number}.jpg" for breed in BREEDS for number in range(photos)]
    paths = [*breed_photos, *(f"Bombay_{number}.jpg" for number in range(stray)), "README", "LICENSE"]
    if stops:
        assert f"{stray + 2} files outside the breed folders: Bombay_0.jpg" in error_of(tmp_path, kind, paths)
    else:
        result = listing(tmp_path, kind, paths)
        assert sorted(result.photos) == sorted(breed_photos)
        warnings = [
            f"{stray + 2} files outside the breed folders are excluded: Bombay_0.jpg, Bombay_1.jpg, Bombay_2.jpg, ..."
        ]
        assert result.warnings == (warnings if stray >= 3 else [])


@every_kind
def test_a_breed_folder_that_contains_splits_is_not_suggested_as_the_data_folder(tmp_path, kind):
    message = error_of(tmp_path, kind, [f"{breed}/{part}/1.jpg" for breed in BREEDS for part in ("train", "val")])
    assert "Birman/: contains 2 folders with 2 files ('train', 'val')" in message
    assert "to use them, pass that folder" not in message


@every_kind
@pytest.mark.parametrize("name", ["Bombay.7z", "Bombay.rar", "Bombay.tar.zst", "Manx/more.zip", "Manx/more.zip.001"])
def test_an_archive_next_to_photos_is_excluded_with_a_warning(tmp_path, kind, name):
    result = listing(tmp_path, kind, [*VALID_FILES, name])
    assert sorted(result.photos) == VALID_FILES
    assert result.excluded == [(name, "an archive; unpack it into its breed folder")]
    assert result.warnings == [f"1 archive excluded ({name}); unpack any that contain photos"]


@every_kind
@pytest.mark.parametrize("parent", ["", "images/"])
@pytest.mark.parametrize("extra", [[], ["annotations/list.txt", "annotations/trimaps/Birman_1.png"]], ids=len)
def test_the_error_suggests_breed_folders_if_file_names_contain_the_breed(tmp_path, kind, parent, extra):
    names = [f"{breed}_{number}.jpg" for breed in ("Abyssinian", "Maine_Coon") for number in range(1, 200, 50)]
    message = error_of(tmp_path, kind, [*(parent + name for name in names), *extra])
    assert f"File names such as {parent}Abyssinian_1.jpg seem to start with the breed; move" in message
    assert "`catbreeds data oxford FOLDER` creates these folders" in message


@every_kind
def test_too_deeply_nested_folders_stop_the_run(tmp_path, kind):
    assert "is nested more than 100 folders deep" in error_of(tmp_path, kind, [*VALID_FILES, f"Manx/{'a/' * 150}1.jpg"])


SPELLINGS = [
    ("Größe", unicodedata.normalize("NFD", "Größe")),
    ("Birman 1", "birman 1"),
    ("Birman 1", "BIRMAN  1"),
    ("Birman 1", " Birman 1"),
    ("Birman 1", "Birman 1 "),
    ("Birman 1", "Birman\u00a01"),
    ("Birman 1", "Birman\u200b 1"),
    ("Birman 1", "\uff22irman 1"),
    ("Straße", "STRASSE"),
    *(("Birman 1", f"Birman{joint}1") for joint in ("_", "-", "__", " - ", "\u2010", "\u2013")),
    *(("Birman 1", f"Bir{chr(code)}man 1") for code in (0xAD, 0x34F, 0x2060, 0x3164, 0xFE0F, 0xFFA0, 0xE0100)),
]


@every_kind
@pytest.mark.parametrize(("one", "other"), SPELLINGS, ids=ascii)
@pytest.mark.parametrize("parts", [("", ""), ("train/", "test/")], ids=["in one folder", "in splits"])
def test_breeds_whose_names_differ_only_in_spelling_stop_the_run(tmp_path, kind, one, other, parts):
    paths = [
        *(f"{part}{path}" for part in {*parts} for path in VALID_FILES),
        f"{parts[0]}{one}/1.jpg",
        f"{parts[1]}{other}/1.jpg",
    ]
    message = error_of(tmp_path, kind, paths)
    assert "names of breed folders differ only in spelling:" in message
    assert " and ".join(ascii(name) for name in sorted((one, other))) in message


@pytest.mark.parametrize("kind", ["folder", ".tar"])
@pytest.mark.parametrize(
    "name", ["Bir\nman", "\r", "   ", "Bir\x1b[31mman", "Bir\u2028man", "\tManx", "\u3164", "\ufe0f "]
)
def test_a_breed_name_with_control_or_only_invisible_characters_stops_the_run(tmp_path, kind, name):
    message = error_of(tmp_path, kind, [*VALID_FILES, f"{name}/1.jpg"])
    assert f"invalid breed name {name!a}; rename the folder" in message


def test_a_breed_name_that_is_not_utf_8_is_shown_with_escapes(tmp_path):
    result = listing(
        tmp_path, "folder", [*VALID_FILES, *(os.fsdecode(path) for path in (b"Gr\xf6\xdfe/1.jpg", b"Manx/\xff.jpg"))]
    )
    assert set(result.photos.values()) == {*BREEDS, r"Gr\xf6\xdfe"}
    assert result.warnings == [r"breed names that are not UTF-8 are shown with escapes: Gr\xf6\xdfe"]


def test_names_that_are_displayed_identically_are_distinguished(tmp_path):
    result = listing(tmp_path, "folder", [*VALID_FILES, os.fsdecode(b"Manx/\xff.jpg"), r"Manx/\xff.jpg"])
    assert [reason for _, reason in result.excluded] == [
        "its name is displayed the same as that of another file; rename it"
    ]
    message = error_of(tmp_path / "breeds", "folder", [*VALID_FILES, os.fsdecode(b"\xff/1.jpg"), r"\xff/1.jpg"])
    assert r"'\\xff' and '\udcff'" in message


@pytest.mark.parametrize(("method", "name"), [(9, "deflate64"), (93, "93"), (98, "ppmd")])
def test_a_zip_with_an_unsupported_compression_stops_the_run_with_a_remedy(tmp_path, method, name):
    data = write(tmp_path, ".zip", VALID_FILES)
    content = Path(data).read_bytes()
    at = content.rindex(b"PK\1\2")
    Path(data).write_bytes(content[: at + 10] + method.to_bytes(2, "little") + content[at + 12 :])
    with pytest.raises(
        DataError, match=rf"Sphynx/3\.jpg uses the unsupported compression method .*{name}; unpack the archive"
    ):
        list_photos(open_source(data))


def without_utf_8_flag(folder: Path, name: bytes) -> str:
    """Write a zip in which the name of a breed is stored as these bytes, without the UTF-8 flag."""
    placeholder = b"x" * len(name)
    data = Path(write(folder, ".zip", [*VALID_FILES, f"{placeholder.decode()}/1.jpg"]))
    data.write_bytes(data.read_bytes().replace(placeholder, name))
    return str(data)


@pytest.mark.parametrize("encoding", ["gbk", "cp1251", "cp437", "shift_jis"])
def test_zip_names_of_unknown_encoding_give_a_warning(tmp_path, encoding):
    name = {"gbk": "波斯猫", "cp1251": "Сибирская", "cp437": "Größe", "shift_jis": "三毛猫"}[encoding].encode(encoding)
    data = without_utf_8_flag(tmp_path, name)
    result = list_photos(open_source(data))
    (warning,) = result.warnings
    part = f"not UTF-8 are decoded as CP437 (1 name, for example {name.decode('cp437')}/1.jpg)"
    assert part in warning


def test_utf_8_names_in_a_zip_without_the_flag_are_decoded_correctly(tmp_path):
    source = open_source(without_utf_8_flag(tmp_path, "波斯猫".encode()))
    result = list_photos(source)
    assert "波斯猫" in result.photos.values()
    assert result.warnings == []
    assert all(fetch() == CONTENT for _, fetch in source.read([*result.photos]))


characters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
folder_names = st.text(characters, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


def breeds_or_error(folder: Path, paths: list[str]) -> set[str] | str:
    """The breeds, or the error message."""
    try:
        return set(listing(folder, "folder", paths).photos.values())
    except DataError as error:
        return str(error)


@given(names=st.lists(folder_names, min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_each_folder_next_to_breeds_is_a_breed_or_stops_the_run_or_is_ignored(tmp_path_factory, names):
    paths = [*VALID_FILES, *(f"{name}/{number}.jpg" for name in names for number in range(2))]
    result = breeds_or_error(tmp_path_factory.mktemp("layout"), paths)
    if isinstance(result, str):
        assert "differ only in spelling" in result or "invalid breed name" in result
    else:
        assert result == {*BREEDS, *(name for name in names if not is_ignored(name))}


@given(
    names=st.lists(folder_names.filter(lambda name: name not in BREEDS), min_size=1, max_size=3),
    inside=st.sampled_from(["", "a/1.jpg", "1.txt", "1.zip"]),
)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_each_folder_without_photos_next_to_breeds_stops_the_run_or_is_ignored(tmp_path_factory, names, inside):
    result = breeds_or_error(tmp_path_factory.mktemp("layout"), [*VALID_FILES, *(f"{name}/{inside}" for name in names)])
    if isinstance(result, str):
        assert "folders that may be breeds have no usable photos" in result
    else:
        assert result == set(BREEDS)
        assert all(map(is_ignored, names))
