"""What a user types about data: bad files to look at, the report of them, a schema for one's own breeds."""

import shlex
import shutil

import pytest

from tests.running import catbreeds, run_pipeline


@pytest.fixture(scope="module")
def own_schema(generate_photos, tmp_path_factory):
    """A data set, the schema written for it, and what was said."""
    folder = tmp_path_factory.mktemp("own")
    photos = generate_photos(breeds=2, photos=12)
    arguments = ("schema", "update", "--data", photos, "--schema", folder / "schema", "--workdir", folder / "work")
    return photos, folder, arguments, catbreeds(*arguments)


def test_schema_update_writes_the_breeds_of_the_data(own_schema):
    _, folder, _, process = own_schema
    assert process.returncode == 0, process.stdout + process.stderr
    for text in ("2 breeds in the data", "added 'Harbor Grey'", f"--set photos_schema={folder / 'schema'}"):
        assert text in process.stdout
    schema = (folder / "schema" / "schema.pbtxt").read_text()
    for text in ('value: "Harbor Grey"', 'value: "Mosscoat"', "max: 8192", "# What one photo must look like"):
        assert text in schema


def test_a_breed_that_is_not_in_the_schema_stops_the_run_and_update_adds_it_keeping_bounds(own_schema, tmp_path):
    photos, folder, arguments, _ = own_schema
    path = folder / "schema" / "schema.pbtxt"
    path.write_text(path.read_text().replace("max: 8192", "max: 4000"))
    (photos / "Tabby").mkdir()
    for photo in sorted((photos / "Mosscoat").iterdir())[:6]:
        shutil.move(photo, photos / "Tabby" / photo.name)
    refused = run_pipeline(photos, tmp_path / "work", "backbones=[resnet50]", f"photos_schema={folder / 'schema'}")
    assert refused.process.returncode == 2
    output = " ".join(refused.process.stdout.split())
    assert f"breed 'Tabby' is not in {path}: add it with `catbreeds schema update" in output
    assert not (tmp_path / "work" / "artifacts" / "EmbeddingGen-resnet50").exists()

    report = catbreeds("report", "--data", "--workdir", tmp_path / "work")
    assert report.returncode == 0
    assert "Tabby" in report.stdout

    assert "added 'Tabby'" in catbreeds(*arguments).stdout
    schema = path.read_text()
    assert schema.count("max: 4000") == 2
    assert 'value: "Tabby"' in schema


def test_folders_are_merged_with_a_warning_and_a_lost_or_respelled_breed_stops_the_command(generate_photos, tmp_path):
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
    following = ["catbreeds", "run", "--data", str(data), "--set", f"photos_schema={schema.parent}"]
    assert shlex.split(merged.stdout.partition("Review it, then: ")[2]) == following

    schema.write_text(schema.read_text().replace("Mosscoat", "mosscoat "))
    respelled = catbreeds(*command)
    assert respelled.returncode == 2
    assert f"{schema}: the same breed in two spellings: 'Mosscoat' and 'mosscoat '" in respelled.stderr

    (data / "val" / "Tabby").mkdir()
    lost = catbreeds(*command)
    assert lost.returncode == 2
    assert "folders that could be breeds give no photos:\n  val/Tabby/: holds nothing" in lost.stdout
    assert "Traceback" not in lost.stdout + lost.stderr


def test_defects_are_written_and_the_report_names_each_with_its_reason(tmp_path):
    drawn = catbreeds("sample-data", tmp_path / "photos", "--defects", "--breeds", 2, "--photos", 12)
    kinds = dict(line.rsplit(": ", 1) for line in drawn.stdout.splitlines()[1:])
    assert len(kinds) == 23
    refused = run_pipeline(tmp_path / "photos", tmp_path / "work", "backbones=[resnet50]", "ingest.max_bad_share=0.3")
    assert refused.process.returncode == 2
    assert "19 of 47 files cannot be used" in refused.process.stdout
    lines = catbreeds("report", "--data", "--workdir", tmp_path / "work").stdout.splitlines()
    said, kind = {}, None
    for line in lines[lines.index("damaged: 7 left out") :]:
        if line.startswith("  "):
            said[line.strip().split(": ")[0]] = kind
        else:
            kind = line.split(":")[0].replace(" ", "_")
    assert said == kinds


def test_the_report_before_any_run_says_what_writes_it(tmp_path):
    for option in ([], ["--data"]):
        refused = catbreeds("report", "--workdir", tmp_path, *option)
        assert refused.returncode == 2
        assert "`catbreeds run` writes it" in refused.stderr


def test_report_shows_the_last_decision(small):
    shown = catbreeds("report", "--workdir", small.workdir)
    assert shown.returncode == 0
    for text in ("resnet50", "Winner: ", "Gate: ", "index.html"):
        assert text in shown.stdout
