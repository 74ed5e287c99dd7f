"""Layouts of folders: no breed is lost or split in two without a word, and published layouts are read as they are."""

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
CONTENT = b"as good as a photo"
BREEDS = ("Birman", "Manx", "Sphynx")
GOOD = [f"{breed}/{number}.jpg" for breed in BREEDS for number in range(4)]
# Paths that end with "/" are empty folders.
LOST = {
    "empty": ["Bombay/"],
    "holds hidden files only": ["Bombay/.DS_Store", "Bombay/Thumbs.db"],
    "holds text": ["Bombay/urls.txt"],
    "holds archives": [f"Bombay/{number}.heic.zip" for number in range(12)],
    "holds films": ["Bombay/1.mov", "Bombay/2.MP4", "Bombay/3.m4v"],
    "holds parts of archives": ["Bombay/1.7z", "Bombay/2.zip.001", "Bombay/3.zip.002"],
    "holds drawings and records": ["Bombay/1.svg", "Bombay/a.tfrecord", "Bombay/a.tfrecord-00000-of-00010"],
    "is nested one deeper": ["Bombay/photos/1.jpg", "Bombay/photos/2.jpg"],
    "is nested two deeper": ["Bombay/photos/raw/1"],
    "is nested in parts": ["Bombay/train/1.jpg", "Bombay/test/2.jpg"],
    "is in the folder of another breed": ["Manx/Bombay/1.jpg"],
    "is as many files beside the folders as another breed has": [f"Bombay_{number}" for number in range(4)],
    "is photos beside the folders, fewer than another breed has": [f"Bombay_{number}.JPG" for number in range(3)],
    "has a name of published notes and photos": ["data/1.jpg.zip"],
}
SHOWN = {
    "empty": "Bombay/: holds nothing",
    "holds hidden files only": "Bombay/: holds nothing",
    "holds text": "Bombay/: holds 1 .txt file",
    "holds archives": "Bombay/: holds 12 .heic.zip files; unpack archives",
    "holds films": "Bombay/: holds 1 .mov file, 1 .mp4 file, 1 .m4v file",
    "holds parts of archives": "Bombay/: holds 1 .7z file, 1 .zip.001 file, 1 .zip.002 file; unpack archives",
    "holds drawings and records": "Bombay/: holds 1 .svg file, 1 .tfrecord file, 1 .tfrecord-00000-of-00010 file",
    "is nested one deeper": "Bombay/: holds 1 folder with 2 files ('photos')",
    "is nested two deeper": "Bombay/: holds 1 folder with 1 file ('photos')",
    "is nested in parts": "Bombay/: holds 2 folders with 2 files ('test', 'train')",
    "is in the folder of another breed": "Manx/Bombay/: holds 1 .jpg file",
    "is as many files beside the folders as another breed has": "4 files outside the breed folders: ",
    "is photos beside the folders, fewer than another breed has": "3 files outside the breed folders: ",
    "has a name of published notes and photos": "data/: holds 1 .jpg.zip file",
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def write(folder: Path, kind: str, paths: list[str]) -> str:
    """A source of such files; its address."""
    if kind == "folder":
        for path in paths:
            place = folder / "data" / path
            (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                place.write_bytes(CONTENT)
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


def refusal(folder: Path, kind: str, paths: list[str]) -> str:
    with pytest.raises(DataError) as caught:
        listing(folder, kind, paths)
    return str(caught.value)


@every_kind
@pytest.mark.parametrize("above", ["", "cats/images/"])
@pytest.mark.parametrize("how", LOST)
def test_a_folder_that_could_be_a_breed_and_gives_no_photo_stops_the_run_with_what_it_holds(tmp_path, kind, above, how):
    said = refusal(tmp_path, kind, [above + path for path in [*GOOD, *LOST[how]]])
    line = said.splitlines()[1].strip()
    assert line.removeprefix(above).startswith(SHOWN[how])
    assert "Put the photos of each breed directly into its folder" in said


@every_kind
@pytest.mark.parametrize("lost", [["Bombay/"], ["Bombay/urls.txt"], ["Bombay/1.zip"], ["Bombay/1.jpg", "Bombay/2.jpg"]])
def test_a_folder_that_is_too_shallow_stops_the_run(tmp_path, kind, lost):
    said = refusal(tmp_path, kind, [*(f"cats/{path}" for path in GOOD), *lost])
    assert ("cats/: holds 3 folders" if "Bombay/1.jpg" in lost else "Bombay/: holds") in said


@pytest.mark.parametrize("above", ["", "cats/"])
def test_a_folder_that_cannot_be_read_stops_the_run_where_it_could_be_a_breed_and_else_is_left_out(
    tmp_path, monkeypatch, above
):
    data = write(tmp_path, "folder", [f"{above}{path}" for path in [*GOOD, "Bombay/1.jpg", "Manx/old/1.jpg"]])
    locked = {os.path.join(data, f"{above}{name}") for name in ("Bombay", "Manx/old")}
    scandir = os.scandir

    def refuse(path):
        if os.path.normpath(path) in locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"\n  {above}Bombay/: cannot be read: Permission denied\nPut"):
        list_photos(open_source(data))
    locked.remove(os.path.join(data, f"{above}Bombay"))
    found = list_photos(open_source(data))
    assert set(found.photos.values()) == {*BREEDS, "Bombay"}
    assert found.refused == [(f"{above}Manx/old/", "cannot be read: Permission denied")]
    assert open_source(data).digest() != open_source(write(tmp_path / "other", "folder", GOOD)).digest()


@every_kind
@pytest.mark.parametrize("above", ["", "cats/"])
def test_folders_that_are_no_breeds_do_not_stop_the_run(tmp_path, kind, above):
    system = [".git/1.jpg", "__MACOSX/Bombay/1.jpg", ".ipynb_checkpoints/1.jpg", "@eaDir/1/2.jpg", "Manx/@eaDir/1.jpg"]
    notes = ["data/cats.csv", "annotations/xml/1.xml", "Labels/1.txt", "docs/README.md"]
    found = listing(tmp_path, kind, [*(above + path for path in [*GOOD, *system]), *notes])
    assert sorted(found.photos) == [above + path for path in GOOD]
    assert {path for path, _ in found.refused} == {"data/", "annotations/", "Labels/", "docs/"}


@every_kind
def test_a_new_empty_folder_changes_the_digest(tmp_path, kind):
    before = open_source(write(tmp_path / "a" if kind == "folder" else tmp_path, kind, GOOD)).digest()
    after = open_source(write(tmp_path / "b" if kind == "folder" else tmp_path, kind, [*GOOD, "Bombay/"])).digest()
    assert before != after


@every_kind
@pytest.mark.parametrize("above", ["", "cats/"])
@pytest.mark.parametrize(
    "parts", [("train", "val", "test"), ("Training", "Validation"), ("train_images", "test_images")]
)
def test_the_parts_of_a_set_are_merged_and_that_is_said(tmp_path, kind, above, parts):
    paths = [f"{above}{part}/{part}_{path}".replace(f"{part}_", "", 1) for part in parts for path in GOOD]
    found = listing(tmp_path, kind, [*paths, f"{above}data/labels.csv"])
    assert found.photos == {path: path.split("/")[-2] for path in sorted(paths)}
    (warning,) = found.warnings
    assert "are read as one data set" in warning
    assert all(f"'{above}{part}'" in warning for part in parts)


@every_kind
@pytest.mark.parametrize("flat", [["test/1.jpg", "test/2.jpg"], ["test/test/1.jpg"], ["test/"], ["test/1.zip"]])
@pytest.mark.parametrize("doubled", ["", "train/"])
def test_a_part_without_breed_folders_is_left_out_and_that_is_said(tmp_path, kind, flat, doubled):
    paths = [f"train/{doubled}{path}" for path in GOOD]
    found = listing(tmp_path, kind, [*paths, *flat, "sample_submission.csv"])
    assert sorted(found.photos) == sorted(paths)
    assert set(found.photos.values()) == set(BREEDS)
    assert [path for path, _ in found.refused] == ["sample_submission.csv", "test/"]
    assert found.warnings == ["test/ is left out: it has no breed folders"]


@every_kind
def test_parts_without_any_breed_folder_are_no_breeds(tmp_path, kind):
    assert "'test', 'train' are parts of a set" in refusal(tmp_path, kind, ["train/1.jpg", "test/2.jpg"])


@every_kind
def test_a_part_whose_folders_are_no_breeds_of_the_other_parts_stops_the_run(tmp_path, kind):
    said = refusal(tmp_path, kind, [*(f"train/{path}" for path in GOOD), "test/unknown/1.jpg", "test/unknown/2.jpg"])
    assert "\n  test/: its folders ('unknown') are not in the other parts\n" in said
    assert "Breed folders are in test or train: if those are meant, pass that folder" in said


@every_kind
def test_images_beside_notes_are_read(tmp_path, kind):
    paths = [f"images/{path}" for path in GOOD]
    found = listing(tmp_path, kind, [*paths, "data/cats.csv", "data/clean_metadata.csv"])
    assert sorted(found.photos) == sorted(paths)
    assert found.refused == [("data/", "not a breed: holds 2 .csv files")]


@every_kind
def test_of_two_folders_with_breed_folders_both_are_named_to_choose_from(tmp_path, kind):
    said = refusal(tmp_path, kind, [f"{above}/{path}" for above in ("images", "resized") for path in GOOD])
    assert "no photos found" in said
    assert "Breed folders are in images or resized: if those are meant, pass that folder" in said


@every_kind
@pytest.mark.parametrize(("photos", "loose", "stops"), [(29, 2, False), (30, 3, True), (31, 3, False), (31, 4, True)])
def test_photos_beside_the_folders_stop_the_run_if_they_may_be_a_breed_and_else_are_a_warning(
    tmp_path, kind, photos, loose, stops
):
    good = [f"{breed}/{number}.jpg" for breed in BREEDS for number in range(photos)]
    paths = [*good, *(f"Bombay_{number}.jpg" for number in range(loose)), "README", "LICENSE"]
    if stops:
        assert f"{loose + 2} files outside the breed folders: Bombay_0.jpg" in refusal(tmp_path, kind, paths)
    else:
        found = listing(tmp_path, kind, paths)
        assert sorted(found.photos) == sorted(good)
        said = [
            f"{loose + 2} files outside the breed folders are left out: Bombay_0.jpg, Bombay_1.jpg, Bombay_2.jpg, ..."
        ]
        assert found.warnings == (said if loose >= 3 else [])


@every_kind
def test_a_breed_that_is_split_into_parts_is_not_named_as_a_folder_of_breeds(tmp_path, kind):
    said = refusal(tmp_path, kind, [f"{breed}/{part}/1.jpg" for breed in BREEDS for part in ("train", "val")])
    assert "Birman/: holds 2 folders with 2 files ('train', 'val')" in said
    assert "if those are meant" not in said


@every_kind
@pytest.mark.parametrize("name", ["Bombay.7z", "Bombay.rar", "Bombay.tar.zst", "Manx/more.zip", "Manx/more.zip.001"])
def test_an_archive_beside_photos_is_left_out_with_a_warning_to_unpack_it(tmp_path, kind, name):
    found = listing(tmp_path, kind, [*GOOD, name])
    assert sorted(found.photos) == GOOD
    assert found.refused == [(name, "an archive; unpack it into the folder of its breed")]
    assert found.warnings == [f"1 archive left out ({name}): if there are photos inside, unpack them"]


@every_kind
@pytest.mark.parametrize("above", ["", "images/"])
@pytest.mark.parametrize("beside", [[], ["annotations/list.txt", "annotations/trimaps/Birman_1.png"]], ids=len)
def test_photos_in_one_folder_whose_names_have_the_breed_say_how_to_divide_them(tmp_path, kind, above, beside):
    names = [f"{breed}_{number}.jpg" for breed in ("Abyssinian", "Maine_Coon") for number in range(1, 200, 50)]
    said = refusal(tmp_path, kind, [*(above + name for name in names), *beside])
    assert f"Names like {above}Abyssinian_1.jpg seem to begin with the breed: move" in said
    assert "`catbreeds data oxford FOLDER` makes these folders" in said


@every_kind
def test_folders_in_folders_without_end_stop_the_run(tmp_path, kind):
    assert "is more than 100 folders deep" in refusal(tmp_path, kind, [*GOOD, f"Manx/{'a/' * 150}1.jpg"])


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
@pytest.mark.parametrize("parts", [("", ""), ("train/", "test/")], ids=["beside", "in parts"])
def test_breeds_whose_names_differ_only_in_spelling_stop_the_run_with_both_names(tmp_path, kind, one, other, parts):
    paths = [
        *(f"{part}{path}" for part in {*parts} for path in GOOD),
        f"{parts[0]}{one}/1.jpg",
        f"{parts[1]}{other}/1.jpg",
    ]
    said = refusal(tmp_path, kind, paths)
    assert "have the same name in two spellings:" in said
    assert " and ".join(ascii(name) for name in sorted((one, other))) in said


@pytest.mark.parametrize("kind", ["folder", ".tar"])
@pytest.mark.parametrize(
    "name", ["Bir\nman", "\r", "   ", "Bir\x1b[31mman", "Bir\u2028man", "\tManx", "\u3164", "\ufe0f "]
)
def test_a_breed_that_cannot_be_written_in_one_line_or_seen_is_refused_by_name(tmp_path, kind, name):
    said = refusal(tmp_path, kind, [*GOOD, f"{name}/1.jpg"])
    assert f"a breed cannot have the name {name!a}: rename the folder" in said


def test_a_breed_that_is_not_utf_8_is_read_and_shown_with_escapes(tmp_path):
    found = listing(
        tmp_path, "folder", [*GOOD, *(os.fsdecode(path) for path in (b"Gr\xf6\xdfe/1.jpg", b"Manx/\xff.jpg"))]
    )
    assert set(found.photos.values()) == {*BREEDS, r"Gr\xf6\xdfe"}
    assert found.warnings == [r"names of breeds are not UTF-8 and are shown with escapes: Gr\xf6\xdfe"]


def test_names_that_are_shown_alike_are_told_apart(tmp_path):
    photo = [*GOOD, os.fsdecode(b"Manx/\xff.jpg"), r"Manx/\xff.jpg"]
    found = listing(tmp_path, "folder", photo)
    assert [reason for _, reason in found.refused] == ["its name is shown like that of another file; rename it"]
    said = refusal(tmp_path / "breeds", "folder", [*GOOD, os.fsdecode(b"\xff/1.jpg"), r"\xff/1.jpg"])
    assert r"'\\xff' and '\udcff'" in said


@pytest.mark.parametrize(("method", "name"), [(9, "deflate64"), (93, "93"), (98, "ppmd")])
def test_a_zip_with_a_compression_that_is_not_known_says_how_to_pack_it_again(tmp_path, method, name):
    data = write(tmp_path, ".zip", GOOD)
    content = Path(data).read_bytes()
    at = content.rindex(b"PK\1\2")
    Path(data).write_bytes(content[: at + 10] + method.to_bytes(2, "little") + content[at + 12 :])
    with pytest.raises(DataError, match=rf"Sphynx/3\.jpg is compressed by the method .*{name}\. Unpack the archive"):
        list_photos(open_source(data))


def without_utf_8_flag(folder: Path, name: bytes) -> str:
    """A zip with photos of a breed whose name is in the archive as these bytes."""
    stand_in = b"x" * len(name)
    data = Path(write(folder, ".zip", [*GOOD, f"{stand_in.decode()}/1.jpg"]))
    data.write_bytes(data.read_bytes().replace(stand_in, name))
    return str(data)


@pytest.mark.parametrize("encoding", ["gbk", "cp1251", "cp437", "shift_jis"])
def test_names_in_a_zip_that_may_be_wrong_are_a_warning(tmp_path, encoding):
    name = {"gbk": "波斯猫", "cp1251": "Сибирская", "cp437": "Größe", "shift_jis": "三毛猫"}[encoding].encode(encoding)
    data = without_utf_8_flag(tmp_path, name)
    found = list_photos(open_source(data))
    (warning,) = found.warnings
    said = f"names in the archive that are not UTF-8 were read as CP437: 1, for example {name.decode('cp437')}"
    assert said in warning


def test_names_in_a_zip_that_are_utf_8_without_saying_so_are_read_right(tmp_path):
    source = open_source(without_utf_8_flag(tmp_path, "波斯猫".encode()))
    found = list_photos(source)
    assert "波斯猫" in found.photos.values()
    assert found.warnings == []
    assert all(fetch() == CONTENT for _, fetch in source.read([*found.photos]))


characters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
folder_names = st.text(characters, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


def outcome(folder: Path, paths: list[str]) -> set[str] | str:
    """The breeds, or why the run stops."""
    try:
        return set(listing(folder, "folder", paths).photos.values())
    except DataError as error:
        return str(error)


@given(names=st.lists(folder_names, min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_each_folder_beside_breeds_is_a_breed_or_stops_the_run_or_is_ignored(tmp_path_factory, names):
    paths = [*GOOD, *(f"{name}/{number}.jpg" for name in names for number in range(2))]
    found = outcome(tmp_path_factory.mktemp("layout"), paths)
    if isinstance(found, str):
        assert "two spellings" in found or "a breed cannot have the name" in found
    else:
        assert found == {*BREEDS, *(name for name in names if not is_ignored(name))}


@given(
    names=st.lists(folder_names.filter(lambda name: name not in BREEDS), min_size=1, max_size=3),
    inside=st.sampled_from(["", "a/1.jpg", "1.txt", "1.zip"]),
)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_each_folder_without_photos_beside_breeds_stops_the_run_or_is_ignored(tmp_path_factory, names, inside):
    found = outcome(tmp_path_factory.mktemp("layout"), [*GOOD, *(f"{name}/{inside}" for name in names)])
    if isinstance(found, str):
        assert "folders that could be breeds give no photos" in found
    else:
        assert found == set(BREEDS)
        assert all(map(is_ignored, names))
