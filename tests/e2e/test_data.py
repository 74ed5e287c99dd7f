"""Commands about data: sample data with defects, the data report, and schemas for other breeds."""

import shlex
import shutil

import pytest

from tests.running import catbreeds, run_pipeline


@pytest.fixture(scope="module")
def schema_update(generate_photos, tmp_path_factory):
    """Photos, folder of their schema, arguments of `schema update`, and its finished process."""
    folder = tmp_path_factory.mktemp("own")
    photos = generate_photos(breeds=2, photos=12)
    arguments = ("schema", "update", "--data", photos, "--schema", folder / "schema", "--workdir", folder / "work")
    return photos, folder, arguments, catbreeds(*arguments)


def test_schema_update_writes_the_breeds_of_the_photos(schema_update):
    _, folder, _, process = schema_update
    assert process.returncode == 0, process.stdout + process.stderr
    for text in ("2 breeds in the data", "added 'Harbor Grey'", f"--set photos_schema={folder / 'schema'}"):
        assert text in process.stdout
    schema = (folder / "schema" / "schema.pbtxt").read_text()
    for text in ('value: "Harbor Grey"', 'value: "Mosscoat"', "max: 8192", "# Schema of a photo after ingestion"):
        assert text in schema


def without_groups(schema: str) -> str:
    """Schema as a version that knew no groups of near-duplicates wrote it."""
    before, name, after = schema.partition('feature {\n  name: "near_duplicate_group"')
    assert name
    return before + after[after.index("\n}\n") + 3 :]


def test_new_breed_stops_the_run_and_schema_update_adds_it(schema_update, tmp_path):
    photos, folder, arguments, _ = schema_update
    path = folder / "schema" / "schema.pbtxt"
    path.write_text(without_groups(path.read_text()).replace("max: 8192", "max: 4000"))
    (photos / "Tabby").mkdir()
    for photo in sorted((photos / "Mosscoat").iterdir())[:6]:
        shutil.move(photo, photos / "Tabby" / photo.name)
    failed = run_pipeline(photos, tmp_path / "work", "backbones=[resnet50]", f"photos_schema={folder / 'schema'}")
    assert failed.process.returncode == 2
    output = " ".join(failed.process.stdout.split())
    assert f"breed 'Tabby' is not in {path}; add it with `catbreeds schema update" in output
    assert "near_duplicate_group" not in output
    assert not (tmp_path / "work" / "artifacts" / "EmbeddingGen-resnet50").exists()

    report = catbreeds("report", "--photos", "--workdir", tmp_path / "work")
    assert report.returncode == 0
    assert "Tabby" in report.stdout

    assert "added 'Tabby'" in catbreeds(*arguments).stdout
    schema = path.read_text()
    assert schema.count("max: 4000") == 2
    assert 'value: "Tabby"' in schema
    assert 'name: "near_duplicate_group"' in schema


def test_schema_update_merges_folders_and_rejects_lost_or_misspelled_breeds(generate_photos, tmp_path):
    photos, data = generate_photos(breeds=2, photos=4), tmp_path / "Anna's cats"
    for part in ("train", "val"):
        shutil.copytree(photos, data / part)
    schema = tmp_path / "her schema" / "schema.pbtxt"
    command = (
        "schema",
        "update",
        "--data",
        data,
        "--schema",
        schema.parent,
        "--workdir",
        tmp_path / "work",
    )
    merged = catbreeds(*command)
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert "Warning: the folders 'train', 'val' are read as one data set" in merged.stdout
    next_command = ["catbreeds", "run", "--data", str(data), "--set", f"photos_schema={schema.parent}"]
    assert shlex.split(merged.stdout.partition("Review it, then: ")[2]) == next_command

    schema.write_text(schema.read_text().replace("Mosscoat", "mosscoat "))
    misspelled = catbreeds(*command)
    assert misspelled.returncode == 2
    assert f"{schema}: the same breed in two spellings: 'Mosscoat' and 'mosscoat '" in misspelled.stderr

    (data / "val" / "Tabby").mkdir()
    lost = catbreeds(*command)
    assert lost.returncode == 2
    assert "folders that may be breeds have no usable photos:\n  val/Tabby/: contains no visible files" in lost.stdout
    assert "Traceback" not in lost.stdout + lost.stderr


def test_data_report_lists_each_defect_with_its_reason(tmp_path):
    sample_data = catbreeds("sample-data", tmp_path / "photos", "--defects", "--breeds", 2, "--photos", 12)
    kinds = dict(line.rsplit(": ", 1) for line in sample_data.stdout.splitlines()[1:])
    assert len(kinds) == 23
    failed = run_pipeline(
        tmp_path / "photos", tmp_path / "work", "backbones=[resnet50]", "ingest.max_unusable_share=0.3"
    )
    assert failed.process.returncode == 2
    assert "19 of 47 files cannot be used" in failed.process.stdout
    lines = catbreeds("report", "--photos", "--workdir", tmp_path / "work").stdout.splitlines()
    reported, kind = {}, None
    for line in lines[lines.index("damaged: 7 excluded") :]:
        if line.startswith("  "):
            reported[line.strip().split(": ")[0]] = kind
        else:
            kind = line.split(":")[0].replace(" ", "_")
    assert reported == kinds


def test_report_without_a_run_names_the_command_that_creates_it(tmp_path):
    for option in ([], ["--photos"]):
        failed = catbreeds("report", "--workdir", tmp_path, *option)
        assert failed.returncode == 2
        assert "`catbreeds run` writes it" in failed.stderr


def test_report_shows_the_last_decision(small):
    shown = catbreeds("report", "--workdir", small.workdir)
    assert shown.returncode == 0
    for text in ("resnet50", "Winner: ", "Gate: ", "index.html"):
        assert text in shown.stdout
