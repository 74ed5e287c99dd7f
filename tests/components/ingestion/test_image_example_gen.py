"""ImageExampleGen: every valid photo is in one split, other files are reported, and new photos move no others."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pytest
import tensorflow as tf
from PIL import Image
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from components import progress
from components.artifacts import IngestReport
from components.errors import DataError
from components.ingestion import image_example_gen
from components.ingestion.image_example_gen import ImageExampleGen
from components.ingestion.splits import SPLITS, assign_split
from pipeline.datasets.defective_files import write_defects
from pipeline.datasets.sample_data import write_sample_data
from pipeline.settings import load
from serving.capture_reasons import RANDOM_SHARE, UNCERTAIN
from serving.perceptual_hash import perceptual_hash
from serving.photo_normalization import normalize
from serving.photo_origins import Origin, add_origin, file_digest


class IngestResult(NamedTuple):
    """Output of the component."""

    examples: Examples
    report: dict
    rows: list[dict]

    def features(self, split: str) -> list[dict[str, bytes | int]]:
        uri = artifact_utils.get_split_uri([self.examples], split)
        records = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{uri}/*"))
        parsed = [tf.train.Example.FromString(r).features.feature for r in records.as_numpy_iterator()]
        return [{k: (f.bytes_list.value or f.int64_list.value)[0] for k, f in row.items()} for row in parsed]

    def splits(self) -> dict[str, str]:
        return {row["path"]: row["split"] for row in self.rows if "split" in row}


def ingest(data: Path, out: Path, **changes) -> IngestResult:
    examples, report = Examples(), IngestReport()
    examples.uri, report.uri = str(out / "examples"), str(out / "report")
    settings = {
        "train": 0.5,
        "eval": 0.25,
        "seed": 0,
        "max_side": 1024,
        "near_duplicate_bits": 48,
    }
    with_beam = {"beam_pipeline": beam.Pipeline(argv=load("demo").beam.pipeline_args())}
    ImageExampleGen.test_call(
        examples, report, data=str(data), data_digest="", code_digest="", **{**settings, **changes}, **with_beam
    )
    rows = [json.loads(line) for line in (out / "report" / "photos.jsonl").read_text().splitlines()]
    return IngestResult(examples, json.loads((out / "report" / "report.json").read_text()), rows)


def split_of(content_hash: str) -> str:
    return assign_split(content_hash, 0.5, 0.25, 0)


@pytest.fixture(scope="module")
def valid_photos(tmp_path_factory):
    """13 valid photos: 6 of each of two breeds, and one of a third breed with a non-ASCII name."""
    folder = tmp_path_factory.mktemp("valid")
    write_sample_data(folder, breeds=2, photos=6)
    other, _ = write_sample_data(folder.parent / "other", breeds=2, photos=1, offset=50)
    (folder / "Größe 1").mkdir()
    shutil.copy(other, folder / "Größe 1" / "a b.JPG")
    return folder


@pytest.fixture(scope="module")
def mixed(valid_photos, tmp_path_factory):
    """The valid photos and an unusable file of every kind, ingested."""
    folder = shutil.copytree(valid_photos, tmp_path_factory.mktemp("mixed") / "photos")
    defects = write_defects(folder, sorted(folder.rglob("*_000*.*")), split_of)
    return folder, ingest(folder, folder.parent), defects


def test_every_valid_photo_is_in_exactly_one_split_with_its_breed(mixed, valid_photos):
    _, result, _ = mixed
    features = [feature for split in SPLITS for feature in result.features(split)]
    expected = {
        path.relative_to(valid_photos).as_posix(): normalize(path.read_bytes()) for path in valid_photos.rglob("*.*")
    }
    assert sorted(f["path"].decode() for f in features) == sorted(expected)
    for feature in features:
        path = feature["path"].decode()
        names = {"image_bytes", "breed", "path", "content_hash", "near_duplicate_group", "width", "height"}
        assert feature.keys() == names
        assert feature["breed"].decode() == path.split("/")[0]
        assert feature["image_bytes"] == expected[path].data
        assert feature["content_hash"].decode() == expected[path].digest
        assert (feature["width"], feature["height"]) == (expected[path].width, expected[path].height)


def test_photos_are_in_the_split_given_in_the_report(mixed):
    _, result, _ = mixed
    assert artifact_utils.decode_split_names(result.examples.split_names) == list(SPLITS)
    for split in SPLITS:
        paths = {feature["path"].decode() for feature in result.features(split)}
        assert paths == {path for path, assigned in result.splits().items() if assigned == split}
        assert result.examples.get_int_custom_property(f"photos_{split}") == len(paths)


def test_every_unusable_file_is_reported_with_kind_and_reason_and_hidden_files_are_ignored(mixed):
    folder, result, defects = mixed
    expected = {defect.path.relative_to(folder).as_posix(): defect.kind for defect in defects}
    assert {row["path"]: row["kind"] for row in result.report["left_out"]} == expected
    assert all(row["reason"] for row in result.report["left_out"])


def test_duplicates_name_the_photo_that_is_kept(mixed):
    _, result, defects = mixed
    originals = {row["path"]: row["like"] for row in result.rows if "like" in row}
    assert len(originals) == sum(d.kind in ("duplicate", "near_duplicate", "label_conflict") for d in defects)
    for row in result.rows:
        if row.get("kind") in ("duplicate", "near_duplicate"):
            assert row["like"] in result.splits()
            assert row["like"] in row["reason"]


def test_the_report_counts_photos_by_breed_and_split(mixed):
    _, result, defects = mixed
    assert (result.report["files"], result.report["photos"]) == (13 + len(defects), 13)
    counts = {breed: sum(splits.values()) for breed, splits in result.report["breeds"].items()}
    assert counts == {"Größe 1": 1, "Harbor Grey": 6, "Mosscoat": 6}
    split_counts = Counter((path.split("/")[0], split) for path, split in result.splits().items())
    assert {(b, s): n for b, splits in result.report["breeds"].items() for s, n in splits.items() if n} == split_counts


def test_only_examples_and_report_are_written(mixed):
    folder, result, _ = mixed
    files = {path.name for path in folder.parent.rglob("*") if path.is_file() and folder not in path.parents}
    assert {name for name in files if not name.startswith("data_tfrecord")} == {"photos.jsonl", "report.json"}
    assert result.report["files"] == len(result.rows)


def test_an_empty_split_has_a_file(valid_photos, tmp_path):
    result = ingest(valid_photos, tmp_path, train=1.0, eval=0.0)
    assert [len(result.features(split)) for split in SPLITS] == [13, 0, 0]
    assert all(list((tmp_path / "examples" / f"Split-{split}").iterdir()) for split in SPLITS)


def test_many_photos_are_written_to_several_files(valid_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(image_example_gen, "_EXAMPLES_PER_FILE", 2)
    result = ingest(shutil.make_archive(str(tmp_path / "photos"), "gztar", valid_photos), tmp_path)
    files = [list((tmp_path / "examples" / f"Split-{split}").iterdir()) for split in SPLITS]
    photos = [len(result.features(split)) for split in SPLITS]
    assert [len(paths) for paths in files] == [math.ceil(count / 2) for count in photos]
    assert sum(photos) == 13


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_gives_the_same_result_as_its_folder(mixed, tmp_path, kind):
    folder, result, _ = mixed
    shutil.copytree(folder, tmp_path / "data" / "Cats" / "photos", ignore=shutil.ignore_patterns("moved_away.jpg"))
    archive = shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "data")
    from_archive = ingest(archive, tmp_path)
    splits = {path.removeprefix("Cats/photos/"): split for path, split in from_archive.splits().items()}
    assert splits == result.splits()
    assert from_archive.report["breeds"] == result.report["breeds"]
    assert len(from_archive.report["left_out"]) == len(result.report["left_out"]) - 1


@pytest.mark.parametrize("examples_per_file", [2, 1024])
def test_examples_and_rows_have_the_smallest_content_hash_of_their_near_duplicates(
    valid_photos, tmp_path, monkeypatch, examples_per_file
):
    """In several files and in one, from a folder and from an archive; nothing else in the examples changes."""
    folder = shutil.copytree(valid_photos, tmp_path / "photos")
    original = Image.open(folder / "Größe 1" / "a b.JPG")
    for number in (2, 3):
        original.resize((original.width * number // 4, original.height * number // 4)).save(
            folder / "Größe 1" / f"{number}.png"
        )
    renamed = []
    rename = fileio.rename
    monkeypatch.setattr(fileio, "rename", lambda *paths, **options: (renamed.append(paths), rename(*paths, **options)))
    monkeypatch.setattr(image_example_gen, "_EXAMPLES_PER_FILE", examples_per_file)
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, "photos")
    result, from_archive = (ingest(data, tmp_path / str(data)[-3:], train=1.0, eval=0.0) for data in (folder, archive))

    features = {feature["content_hash"]: feature for feature in result.features("train")}
    photos = {normalize(path.read_bytes()).digest.encode(): path for path in folder.rglob("*.*")}
    copies = [content_hash for content_hash, path in photos.items() if path.parent.name == "Größe 1"]
    groups = {content_hash: content_hash for content_hash in photos} | dict.fromkeys(copies, min(copies))
    assert len(photos) == 15
    assert {content_hash: f["near_duplicate_group"] for content_hash, f in features.items()} == groups
    for content_hash, path in photos.items():
        assert features[content_hash]["image_bytes"] == normalize(path.read_bytes()).data
    assert {r["content_hash"].encode(): r["near_duplicate_group"].encode() for r in result.rows} == groups
    in_archive = {f["content_hash"]: f["near_duplicate_group"] for f in from_archive.features("train")}
    assert in_archive == groups
    files = tf.io.gfile.glob(f"{result.examples.uri}/Split-train/*")
    assert len(files) == math.ceil(15 / examples_per_file)
    moved = {destination for _, destination in renamed}
    assert {path for path in files if path not in moved} == {
        path for path in files if any(copy in Path(path).read_bytes() for copy in copies if copy != min(copies))
    }


def test_data_without_valid_photos_gives_a_report(tmp_path):
    (tmp_path / "data" / "Manx").mkdir(parents=True)
    (tmp_path / "data" / "Manx" / "cat.jpg").write_text("no photo")
    report = ingest(tmp_path / "data", tmp_path).report
    assert (report["photos"], len(report["left_out"])) == (0, 1)
    assert report["breeds"] == {"Manx": {"train": 0, "eval": 0, "test": 0}}


@pytest.mark.slow
def test_a_thousand_valid_photos_are_kept_and_new_photos_change_no_other_result(tmp_path):
    data = tmp_path / "photos"
    photos = write_sample_data(data, breeds=5, photos=200)
    defects = write_defects(data, photos, split_of, copies=9)
    assert len(defects) == 191
    first = ingest(data, tmp_path / "first")
    assert {row["path"]: row["kind"] for row in first.report["left_out"]} == {
        defect.path.relative_to(data).as_posix(): defect.kind for defect in defects
    }
    assert first.splits().keys() == {path.relative_to(data).as_posix() for path in photos}

    write_sample_data(data, breeds=5, photos=100, offset=200)
    second = ingest(data, tmp_path / "second")
    assert len(second.splits()) == 1500
    assert second.report["left_out"] == first.report["left_out"]
    assert {path: second.splits()[path] for path in first.splits()} == first.splits()


def test_split_assignment_matches_the_shares_and_changes_with_the_seed():
    hashes = [f"{number:064x}" for number in range(4000)]
    assigned = [assign_split(content, 0.7, 0.1, 0) for content in hashes]
    shares = Counter(assigned)
    assert [shares[split] / 4000 for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    with_other_seed = [assign_split(content, 0.7, 0.1, 1) for content in hashes]
    same = sum(a == b for a, b in zip(assigned, with_other_seed, strict=True)) / 4000
    assert same == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.03)


def test_large_photos_are_resized(valid_photos, tmp_path):
    result = ingest(valid_photos, tmp_path, max_side=64)
    sizes = [max(f["width"], f["height"]) for split in SPLITS for f in result.features(split)]
    assert sizes == [64] * 13


def test_progress_is_reported_for_each_photo(valid_photos, tmp_path):
    reports = []
    progress.set_listener(lambda *report: reports.append(report))
    try:
        ingest(valid_photos, tmp_path)
    finally:
        progress.set_listener(None)
    assert reports[-1] == ("photos", 13, 13)
    assert len(reports) == 13


def origin_of(path: Path, capture: str, reason: str) -> Origin:
    photo = path.read_bytes()
    times = {"captured_at": "2026-11-30T10:00:00+00:00", "decided_at": "2026-11-30T11:00:00+00:00"}
    decision = {"predicted": "Mosscoat", "feedback": None, "breed": path.parent.name, "reviewer": "ada"}
    image_hash = perceptual_hash(normalize(photo).luma).hex()
    return Origin(file_digest(photo), capture, reason, version=3, perceptual_hash=image_hash, **times, **decision)


@pytest.fixture(scope="module")
def photos_with_origins(valid_photos, tmp_path_factory):
    """The valid photos; those of one breed were captured: one of each split at random, the others as uncertain."""
    folder = shutil.copytree(valid_photos, tmp_path_factory.mktemp("origins") / "photos")
    photos = sorted((folder / "Mosscoat").iterdir())
    split_by_photo = {path: split_of(normalize(path.read_bytes()).digest) for path in photos}
    held_out = [path for path in photos if split_by_photo[path] != "train"]
    assert 2 <= len(held_out) < len(photos)
    random = {held_out[0], next(path for path in photos if path not in held_out)}
    for number, path in enumerate(photos):
        add_origin(folder, origin_of(path, f"capture-{number}", RANDOM_SHARE if path in random else UNCERTAIN))
    for path in photos:
        path.rename(path.with_name(f"renamed-{path.name}"))
    random_splits = {f"Mosscoat/renamed-{path.name}": split_by_photo[path] for path in random}
    return folder, random_splits, ingest(folder, folder.parent)


def test_photos_captured_as_uncertain_are_in_train_and_those_of_the_random_share_in_any_split(photos_with_origins):
    _, random_splits, result = photos_with_origins
    assert len(set(random_splits.values())) > 1
    captured = {path: split for path, split in result.splits().items() if path.startswith("Mosscoat/")}
    assert len(captured) == 6
    assert captured == dict.fromkeys(captured, "train") | random_splits
    for split in SPLITS:
        paths = {feature["path"].decode() for feature in result.features(split)}
        assert paths == {path for path, assigned in result.splits().items() if assigned == split}


def test_the_report_has_the_origins_and_counts_captured_photos_by_reason_and_split(photos_with_origins):
    _, random_splits, result = photos_with_origins
    origins = {row["path"]: row["origin"] for row in result.rows if "origin" in row}
    assert origins.keys() == {path for path in result.splits() if path.startswith("Mosscoat/")}
    for path, origin in origins.items():
        assert origin["reason"] == ("random" if path in random_splits else "uncertain")
        assert (origin["version"], origin["reviewer"], origin["breed"]) == (3, "ada", "Mosscoat")
    counts = Counter(random_splits.values())
    assert result.report["captured"] == {
        "random": {split: counts[split] for split in SPLITS},
        "uncertain": {"train": 6 - counts.total(), "eval": 0, "test": 0},
    }
    assert not any("origins" in row["path"] for row in result.report["left_out"])
    assert result.report["warnings"] == []


def test_an_uncertain_capture_never_removes_a_photo_from_eval_or_test(valid_photos, tmp_path):
    folder = shutil.copytree(valid_photos, tmp_path / "photos")
    held_out = next(p for p in sorted(folder.rglob("*.jpg")) if split_of(normalize(p.read_bytes()).digest) != "train")
    copy = held_out.with_name("a capture.jpg")
    Image.open(held_out).convert("RGB").resize((150, 150)).save(copy)
    add_origin(folder, origin_of(copy, "capture-1", UNCERTAIN))
    result = ingest(folder, tmp_path)
    path = held_out.relative_to(folder).as_posix()
    assert result.splits()[path] != "train"
    (row,) = result.report["left_out"]
    assert (row["path"], row["kind"], row["reason"]) == (
        copy.relative_to(folder).as_posix(),
        "near_duplicate",
        f"nearly the same photo as {path}",
    )
    assert result.report["warnings"] == []


def test_origins_are_found_in_an_archive_of_the_folder(photos_with_origins, tmp_path):
    folder, _, result = photos_with_origins
    archive = shutil.make_archive(str(tmp_path / "photos"), "gztar", folder.parent, "photos")
    archived = ingest(Path(archive), tmp_path)
    assert {path.removeprefix("photos/"): split for path, split in archived.splits().items()} == result.splits()
    assert archived.report["captured"] == result.report["captured"]


def test_an_edited_photo_with_an_origin_is_named_in_a_warning(photos_with_origins, tmp_path):
    folder = shutil.copytree(photos_with_origins[0], tmp_path / "photos")
    path = next((folder / "Mosscoat").iterdir())
    Image.open(path).convert("RGB").rotate(90).save(path)
    (warning,) = ingest(folder, tmp_path).report["warnings"]
    assert warning.startswith(
        "origins.jsonl has 1 photo that changed or is missing, for example that of capture capture-"
    )


@pytest.mark.parametrize("line", ["{", '{"capture": "x"}', "[]", "\xff"])
def test_a_damaged_file_of_origins_stops_the_run_and_is_named(photos_with_origins, tmp_path, line):
    folder = shutil.copytree(photos_with_origins[0], tmp_path / "photos")
    with open(folder / "origins.jsonl", "ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"origins\.jsonl: "):
        ingest(folder, tmp_path)
