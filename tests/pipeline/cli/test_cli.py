"""The `catbreeds` command as a person meets it: quick help, exit codes, messages without tracebacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import load
from tests import fork_server

COMMAND = Path(sys.executable).with_name("catbreeds")


@pytest.fixture
def catbreeds(tmp_path):
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CATBREEDS_")}
        environment |= {"COLUMNS": "200", "NO_COLOR": "1", **variables}
        return fork_server.run([COMMAND, *arguments], cwd=tmp_path, env=environment, timeout=60)

    return call


def assert_refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["run", "--print-config"], ["data", "--help"], ["doctor", "--profile", "demo"]],
    ids=" ".join,
)
def test_help_settings_and_the_doctor_s_findings_are_shown_without_loading_tensorflow(arguments):
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "print('LOADED', *sorted({'tensorflow', 'keras', 'tfx', 'apache_beam', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
    assert len(done.stdout.splitlines()) > 10


def test_settings_of_other_projects_for_warnings_and_matplotlib_change_nothing(tmp_path):
    code = (
        "import os, warnings\nfrom pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "for kind in (UserWarning, DeprecationWarning):\n    warnings.warn('a library warns', kind)\n"
        "import matplotlib\nprint(matplotlib.get_backend(), 'PYTHONWARNINGS' in os.environ)"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error", "MPLBACKEND": "module://of_another_project"}
    command = [sys.executable, "-c", code, "models", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "agg False"


def test_help_names_every_command(catbreeds):
    done = catbreeds("--help")
    assert done.returncode == 0
    for command in ("run", "predict", "sample-data", "compile", "data", "doctor", "submit", "schedule"):
        assert f" {command} " in done.stdout


def test_help_shows_the_default_of_an_option(catbreeds):
    assert "[default: (runs)]" in catbreeds("run", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "tuner.max_epochz=3"], ["catbreeds: tuner.max_epochz: no such setting", "max_epochs"]),
        (["--set", "tuner.max_epochs=0"], ["catbreeds: tuner.max_epochs:", "at least 2 and at most 1000"]),
        (["--set", "tuner.max_epochs"], ["write --set key=value"]),
        (["--profile", "huge"], ["profile 'huge': no such profile or file; available profiles: demo, smoke, standard"]),
        (["--profile", "demo", "--set", "image_size=64"], ["image_size: xception needs at least 71 pixels"]),
        (["--epochs", "3"], ["No such option"]),
    ],
)
def test_a_wrong_setting_is_refused_in_words(catbreeds, arguments, parts, tmp_path):
    assert_refused(catbreeds("run", "--data", str(tmp_path), *arguments), *parts)


def test_a_wrong_environment_variable_is_refused_in_words(catbreeds):
    assert_refused(catbreeds("run", CATBREEDS_GATE__MARGIN="2"), "catbreeds: gate.margin:", "at most 1")


def test_a_run_without_photos_says_how_to_name_them(catbreeds):
    assert_refused(catbreeds("run", "--profile", "demo"), "no photos: say --data FOLDER")


def test_a_run_on_a_missing_folder_names_it_and_writes_nothing(catbreeds, tmp_path):
    done = catbreeds("run", "--profile", "demo", "--data", "nowhere", "--workdir", "work")
    assert_refused(done, "data: nowhere: no such folder")
    assert list(tmp_path.iterdir()) == []


def in_bytes(*arguments: str | bytes) -> list[str]:
    return [os.fsdecode(argument) for argument in arguments]


@pytest.mark.parametrize("command", [("run",), ("schema", "update")], ids=" ".join)
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data", b"cats\xff"], ["data: ", "cats\\xff: the path is not UTF-8"]),
        (["--data", b"\xe9/photos"], ["data: ", "\\xe9/photos: the path is not UTF-8"]),
        (["--data", "cats", "--workdir", b"w\xff"], ["workdir: ", "w\\xff: the path is not UTF-8"]),
        (["--data", "cats", "--set", b"photos_schema=s\xff"], ["--set photos_schema=s"]),
        (["--data", "cats", "--set", b"weights_dir=s\xff"], ["--set weights_dir=s"]),
        *(
            (["--data", "cats", "--workdir", name], ["workdir: ", "the whole path must have no control characters"])
            for name in ("w[1]", "w*", "w?", "a\\b", "two\nlines", "\x1b[31m", "w[1]/below")
        ),
        (["--data", "n" * 300], ["data: nnn", "cannot be opened: File name too long"]),
        (["--data", "nowhere\nat all"], ["data: nowhere\\nat all: no such folder"]),
    ],
    ids=ascii,
)
def test_paths_that_tensorflow_cannot_use_are_refused_at_the_start_by_name(
    catbreeds, tmp_path, command, options, parts
):
    (tmp_path / "cats").mkdir()
    (tmp_path / os.fsdecode(b"cats\xff")).mkdir()
    before = sorted(tmp_path.iterdir())
    assert_refused(catbreeds(*command, "--profile", "demo", *in_bytes(*options)), *parts)
    assert sorted(tmp_path.iterdir()) == before


def test_a_workdir_below_a_folder_with_pattern_characters_is_refused_too(catbreeds, tmp_path):
    for name in ("cats", "here [1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here [1]")
    assert_refused(catbreeds("run", "--data", "cats", "--workdir", "link/work"), "workdir: ", "here [1]/work")


def test_a_second_run_in_the_same_workdir_is_refused(catbreeds, tmp_path):
    from filelock import FileLock

    (tmp_path / "photos").mkdir()
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / ".run.lock"):
        done = catbreeds("run", "--profile", "demo", "--data", "photos", "--workdir", "work")
    assert_refused(done, "work: another run is at work there")


def test_the_settings_that_are_shown_load_again(catbreeds, tmp_path):
    options = ["--profile", "demo", "--set", "tuner.units=[0, 7]", "--data", "some photos", "--workdir", "größe"]
    done = catbreeds("run", *options, "--print-config", CATBREEDS_SEED="5")
    assert (done.returncode, done.stderr) == (0, "")
    shown = tmp_path / "shown.yaml"
    shown.write_text(done.stdout, encoding="utf-8")
    overrides = ["tuner.units=[0, 7]", "data=some photos", "workdir=größe", "seed=5"]
    assert load(str(shown)) == load("demo", overrides)
    assert catbreeds("run", "--profile", "shown.yaml", "--print-config").stdout == done.stdout


def test_the_options_are_the_last_word(catbreeds):
    done = catbreeds("run", "--data", "b", "--set", "data=a", "--print-config", CATBREEDS_DATA="c")
    assert "\ndata: b\n" in done.stdout


def test_a_folder_may_be_named_by_a_year(catbreeds):
    assert "\ndata: '2024'\n" in catbreeds("run", "--data", "2024", "--print-config").stdout


def test_a_prediction_before_the_first_run_says_what_to_do(catbreeds, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"")
    assert_refused(catbreeds("predict", "cat.jpg"), "no model is in service there", "catbreeds run")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"text", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image"), (None, "No such file")]
)
def test_a_prediction_for_what_is_no_photo_names_the_file(catbreeds, tmp_path, content, reason):
    record = tmp_path / "runs" / "serving" / "catbreeds" / "1" / "assets.extra" / "catbreeds.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    if content is not None:
        (tmp_path / "cat.jpg").write_bytes(content)
    assert_refused(catbreeds("predict", "cat.jpg"), "catbreeds: cat.jpg: ", reason)


def test_sample_data_writes_as_many_photos_as_asked_and_refuses_what_it_cannot_draw(catbreeds, tmp_path):
    done = catbreeds("sample-data", "photos", "--breeds", "2", "--photos", "1")
    assert done.returncode == 0
    assert done.stdout == "2 photos of 2 imaginary breeds in photos\n"
    assert len(list(tmp_path.glob("photos/*/*.jpg"))) == 2
    assert_refused(catbreeds("sample-data", "photos", "--breeds", "1"), "breeds must be 2 to")
