"""Every command handles unusable paths, closed or full output streams, and terminals with other encodings."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_server
from tests.running import CATBREEDS, catbreeds, on_terminal

WORKDIR_COMMANDS = [
    ["run", "--profile", "smoke", "--data", "photos", "--workdir"],
    ["report", "--workdir"],
    ["lineage", "1", "--workdir"],
    ["gate", "--workdir"],
    ["promote", "1", "--workdir"],
    ["rollback", "--workdir"],
    ["canary", "--workdir"],
    ["serve", "--workdir"],
    ["up", "--workdir"],
    ["predict", "cat.jpg", "--workdir"],
]
OUTPUT_COMMANDS = [
    ["compile", "--output"],
    ["schema", "update", "--data", "photos", "--workdir", "work", "--schema"],
    ["schema", "update", "--data", "photos", "--workdir"],
    ["sample-data"],
    ["data", "oxford", "--url", "http://127.0.0.1:9", "--tries", "1"],
    ["submit"],
    ["schedule", "--list"],
    ["run", "--print-config", "--profile"],
]


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").write_text("a file")
    return tmp_path


def assert_error(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode in (1, 2), done
    assert done.stderr.startswith("catbreeds: "), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize("arguments", WORKDIR_COMMANDS + OUTPUT_COMMANDS, ids=" ".join)
def test_the_error_names_an_unusable_path(cwd, generate_photos, arguments):
    (cwd / "cat.jpg").write_bytes(next(generate_photos(breeds=2, photos=1).rglob("*.jpg")).read_bytes())
    for path in ("file", "file/below", "/proc/nowhere", "x" * 300):
        assert_error(catbreeds(*arguments, path), path)


def test_a_path_that_cannot_be_written_is_reported_on_a_terminal(cwd):
    code, output = on_terminal(200, "compile", "--output", "file")
    assert code == 2
    assert output == "catbreeds: file: not a folder; --output must be a writable folder\n"


@pytest.mark.parametrize(
    "arguments", [["models", "--workdir"], ["serve", "--workdir"], *OUTPUT_COMMANDS[:5]], ids=" ".join
)
def test_a_path_that_is_not_a_folder_is_reported_with_its_file_type(cwd, arguments):
    (cwd / "link").symlink_to("nowhere")
    is_subfolder = arguments[0] in ("sample-data", "data")  # the command creates a folder in the path
    for path, conflict in (
        ("file", "file is not a folder" if is_subfolder else "file: not a folder"),
        ("file/below", "file is not a folder"),
        ("link", "a symbolic link to nowhere, which does not exist"),
    ):
        done = catbreeds(*arguments, path)
        assert_error(done, path, conflict)
        assert done.returncode == 2
    assert not (cwd / "nowhere").exists()


@pytest.mark.parametrize("arguments", [["run", "--print-config"], ["models"], ["--help"]], ids=" ".join)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_closed_by_the_caller_is_not_an_error(cwd, arguments, closed):
    command = f"{shlex.quote(str(CATBREEDS))} {' '.join(arguments)} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == (">&- " in f"{closed} ".replace("2>&-", ""))


@pytest.mark.parametrize("arguments", [["run", "--print-config"], ["models"], ["models", "--json"]], ids=" ".join)
def test_a_closed_pipe_ends_the_command_without_a_traceback(cwd, arguments):
    command = f"{shlex.quote(str(CATBREEDS))} {' '.join(arguments)} | true"
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stderr == ""


def test_a_full_disk_is_reported(cwd):
    (cwd / "out").mkdir()
    (cwd / "out" / "smoke.yaml").symlink_to("/dev/full")
    assert_error(catbreeds("compile", "--profile", "smoke", "--output", "out"), "No space left on device")
    with open("/dev/full", "w") as full:
        process = fork_server.Popen([str(CATBREEDS), "models"], stdout=full, stderr=subprocess.PIPE, text=True)
        error = process.communicate()[1]
    assert (process.returncode, error) == (2, "catbreeds: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("feature { nme: 'breed' }", "line 1:11 : "),
        ("no schema at all", "line 1:"),
        ("", "has no feature named breed"),
        ("feature { name: 'breed' type: BYTES domain: 'breeds' }", "the domain 'breeds', which is not defined"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_a_malformed_schema_is_reported_before_photos_are_read(cwd, content, reason):
    schema = cwd / "mine" / "schema.pbtxt"
    schema.parent.mkdir()
    schema.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_error(
        catbreeds("schema", "update", "--data", "photos", "--schema", "mine", "--workdir", "work"),
        "mine/schema.pbtxt: cannot be read: ",
        reason,
    )
    assert not (cwd / "work").exists()


def test_a_run_with_a_malformed_schema_does_not_start(cwd, generate_photos):
    photos = generate_photos(breeds=2, photos=3)
    (cwd / "schema.pbtxt").write_text("feature { nme: 'breed' }")
    done = catbreeds("run", "--profile", "smoke", "--data", photos, "--workdir", "work", "--set", "photos_schema=.")
    assert done.returncode == 2
    assert f"Cannot start: photos_schema: {cwd / 'schema.pbtxt'}: cannot be read: line 1:11" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


INGEST = {
    "photos": 1,
    "files": 2,
    "breeds": {"Européen 😺 \udcff": {"train": 1, "eval": 0, "test": 0}},
    "left_out": [{"path": "Européen/größe.jpg", "kind": "damaged", "reason": "日本"}],
}


@pytest.fixture
def document(cwd) -> Path:
    """Write ingest.json of a run in `work`."""
    path = cwd / "work" / "report" / "ingest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(INGEST))
    return path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"Europ\xe9en \U0001f63a"),
        ({"PYTHONIOENCODING": "latin-1"}, b"Europ\xe9en \\U0001f63a"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"Europ\xe9en \U0001f63a"),
        ({"PYTHONIOENCODING": "utf-8"}, "Européen 😺 \\udcff".encode()),
    ],
)
def test_characters_that_the_terminal_cannot_encode_are_escaped(document, variables, expected):
    command = [str(CATBREEDS), "report", "--photos", "--workdir", "work"]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **variables})
    assert (done.returncode, done.stderr) == (0, b"")
    assert expected in done.stdout


def test_the_console_of_a_run_escapes_characters_and_other_output_goes_to_the_log(cwd):
    code = (
        "from pathlib import Path\nfrom pipeline.console import noise_to, print_error\n"
        "with noise_to(Path('log')) as console:\n"
        "    print('noise')\n    console.print('größe')\n    print_error('schön')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gr\\xf6\\xdfe\n", b"sch\\xf6n\n")
    assert (cwd / "log").read_text() == "noise\n"


@pytest.mark.parametrize("content", ["{", "[]", "{}", "5", '{"photos": 1, "files": 1, "breeds": 7, "left_out": []}'])
def test_a_damaged_document_is_reported(document, content):
    document.write_text(content)
    done = catbreeds("report", "--photos", "--workdir", "work")
    assert_error(done, "work/report", "damaged", "`catbreeds run` writes it")


@pytest.mark.parametrize("arguments", [["lineage", "1"], ["gate"]], ids=" ".join)
def test_a_run_history_that_cannot_be_opened_is_not_reported_as_damaged_or_missing(cwd, arguments):
    (cwd / "work" / "metadata.sqlite").mkdir(parents=True)
    done = catbreeds(*arguments, "--workdir", "work")
    assert_error(done, "work/metadata.sqlite: cannot be read: Is a directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "--output"],
        ["schema", "update", "--data", "photos", "--workdir", "work", "--schema"],
        ["schema", "update", "--data", "photos", "--workdir"],
        ["sample-data"],
        ["data", "oxford"],
        ["data", "oxford", "out", "--archives"],
        ["data", "kaggle"],
        ["models", "--workdir"],
        ["run", "--data", "photos", "--set", "photos_schema="],
    ],
    ids=" ".join,
)
def test_the_url_of_a_bucket_is_rejected_where_a_local_path_is_required(cwd, arguments):
    *others, last = arguments
    option = [f"{last}gs://cats/out"] if last.endswith("=") else [last, "gs://cats/out"]
    done = catbreeds(*others, *option)
    message = "".join(done.stderr.replace("│", "").split())
    assert done.returncode == 2
    assert "gs://cats/out" in message
    assert "mustbealocalpath;mountthebucket" in message
    assert not list(cwd.glob("gs:*"))
