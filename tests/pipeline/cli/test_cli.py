"""The `catbreeds` command: fast help, exit codes, and error messages without tracebacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import load
from tests import fork_server
from tests.model_files import SIDE, write_model

COMMAND = Path(sys.executable).with_name("catbreeds")


@pytest.fixture
def catbreeds(tmp_path):
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CATBREEDS_")}
        environment |= {"COLUMNS": "200", "NO_COLOR": "1", **variables}
        return fork_server.run([COMMAND, *arguments], cwd=tmp_path, env=environment, timeout=60)

    return call


def assert_rejected(done: subprocess.CompletedProcess, *parts: str) -> None:
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
def test_help_settings_and_doctor_do_not_import_tensorflow(arguments):
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "print('LOADED', *sorted({'tensorflow', 'keras', 'tfx', 'apache_beam', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
    assert len(done.stdout.splitlines()) > 10


def test_environment_variables_for_warnings_and_matplotlib_are_ignored(tmp_path):
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


def test_help_lists_every_command(catbreeds):
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
        (
            ["--profile", "huge"],
            ["profile 'huge': no such profile or file; available profiles: demo, feedback,"],
        ),
        (["--profile", "demo", "--set", "image_size=64"], ["image_size: xception needs at least 71 pixels"]),
        (["--epochs", "3"], ["No such option"]),
    ],
)
def test_an_invalid_setting_is_rejected_with_a_message(catbreeds, arguments, parts, tmp_path):
    assert_rejected(catbreeds("run", "--data", str(tmp_path), *arguments), *parts)


@pytest.mark.parametrize(
    ("side", "entry", "message"),
    [
        (None, "", "backbones: net: image_size: missing, and net.keras takes images of several sizes; add it"),
        (SIDE, "image_size: 64", "backbones: net: image_size: net.keras takes images of 32 x 32 pixels, not 64 x 64"),
        (SIDE, "layers: [tpo]", "backbones: net: layers: net.keras has no layer 'tpo'"),
        (SIDE, "layers: [top, body]", "backbones: net: layers: 'body' does not come after 'top'"),
    ],
)
def test_a_model_file_that_cannot_be_a_backbone_is_rejected_before_the_run(catbreeds, tmp_path, side, entry, message):
    write_model(tmp_path / "net.keras", side)
    backbones = f"backbones=[{{name: net, model: net.keras, {entry}}}]"
    sizes = "image_size={resnet50: 71}"
    command = ("run", "--profile", "demo", "--data", str(tmp_path), "--set", backbones, "--set", sizes)
    assert_rejected(catbreeds(*command), message)
    assert not (tmp_path / "runs").exists()


def test_an_invalid_environment_variable_is_rejected_with_a_message(catbreeds):
    assert_rejected(catbreeds("run", CATBREEDS_GATE__MARGIN="2"), "catbreeds: gate.margin:", "at most 1")


def test_run_without_photos_reports_the_missing_data_option(catbreeds):
    assert_rejected(catbreeds("run", "--profile", "demo"), "no photos given; pass --data FOLDER")


RENAMED_OPTIONS = [
    (["report", "--data"], "--photos"),
    (["sample-data", "out", "--first", "10"], "--offset"),
    (["canary", "--wait", "10"], "--timeout"),
    (["submit", "--poll", "1"], "--poll-interval"),
    (["serve", "--no-server"], "--config-only"),
]


@pytest.mark.parametrize(("arguments", "new_name"), RENAMED_OPTIONS, ids=lambda value: str(value))
def test_a_renamed_option_is_rejected_with_its_new_name(catbreeds, tmp_path, arguments, new_name):
    command, former_name = arguments[0], next(argument for argument in arguments if argument.startswith("--"))
    expected = f"catbreeds: {former_name}: this option was renamed; use {new_name}\n"
    for variant in (arguments, [*arguments[: arguments.index(former_name)], f"{former_name}=1"]):
        done = catbreeds(*variant)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert list(tmp_path.iterdir()) == []
    help_text = catbreeds(command, "--help").stdout
    assert f" {new_name} " in help_text
    assert f" {former_name} " not in help_text


def test_an_argument_after_a_double_dash_is_not_treated_as_a_renamed_option(catbreeds):
    assert catbreeds("sample-data", "--breeds", "2", "--photos", "1", "--", "--first").returncode == 0


def test_a_run_on_a_missing_folder_reports_its_path_and_writes_nothing(catbreeds, tmp_path):
    done = catbreeds("run", "--profile", "demo", "--data", "nowhere", "--workdir", "work")
    assert_rejected(done, "data: nowhere: no such folder")
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
            (["--data", "cats", "--workdir", name], ["workdir: ", "must not contain control characters or any of"])
            for name in ("w[1]", "w*", "w?", "a\\b", "two\nlines", "\x1b[31m", "w[1]/below")
        ),
        (["--data", "n" * 300], ["data: nnn", "cannot be opened: File name too long"]),
        (["--data", "nowhere\nat all"], ["data: nowhere\\nat all: no such folder"]),
    ],
    ids=ascii,
)
def test_paths_that_tensorflow_cannot_use_are_rejected_before_the_run_starts(
    catbreeds, tmp_path, command, options, parts
):
    (tmp_path / "cats").mkdir()
    (tmp_path / os.fsdecode(b"cats\xff")).mkdir()
    before = sorted(tmp_path.iterdir())
    assert_rejected(catbreeds(*command, "--profile", "demo", *in_bytes(*options)), *parts)
    assert sorted(tmp_path.iterdir()) == before


def test_a_workdir_in_a_folder_with_glob_characters_is_rejected(catbreeds, tmp_path):
    for name in ("cats", "here [1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here [1]")
    assert_rejected(catbreeds("run", "--data", "cats", "--workdir", "link/work"), "workdir: ", "here [1]/work")


def test_a_second_run_in_the_same_workdir_is_rejected(catbreeds, tmp_path):
    from filelock import FileLock

    (tmp_path / "photos").mkdir()
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / ".run.lock"):
        done = catbreeds("run", "--profile", "demo", "--data", "photos", "--workdir", "work")
    assert_rejected(done, "work: another run is in progress")


def test_the_printed_settings_can_be_used_as_a_profile(catbreeds, tmp_path):
    options = ["--profile", "demo", "--set", "tuner.units=[0, 7]", "--data", "some photos", "--workdir", "größe"]
    done = catbreeds("run", *options, "--print-config", CATBREEDS_SEED="5")
    assert (done.returncode, done.stderr) == (0, "")
    printed = tmp_path / "printed.yaml"
    printed.write_text(done.stdout, encoding="utf-8")
    overrides = ["tuner.units=[0, 7]", "data=some photos", "workdir=größe", "seed=5"]
    assert load(str(printed)) == load("demo", overrides)
    assert catbreeds("run", "--profile", "printed.yaml", "--print-config").stdout == done.stdout


def test_the_options_of_a_command_override_all_other_settings(catbreeds):
    done = catbreeds("run", "--data", "b", "--set", "data=a", "--print-config", CATBREEDS_DATA="c")
    assert "\ndata: b\n" in done.stdout


def test_a_folder_name_may_be_a_number(catbreeds):
    assert "\ndata: '2024'\n" in catbreeds("run", "--data", "2024", "--print-config").stdout


def test_a_prediction_before_the_first_run_is_rejected_with_advice(catbreeds, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"")
    assert_rejected(catbreeds("predict", "cat.jpg"), "no version is stable", "catbreeds run")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"text", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image"), (None, "No such file")]
)
def test_a_prediction_for_an_unusable_photo_names_the_file(catbreeds, tmp_path, content, reason):
    record = tmp_path / "runs" / "serving" / "catbreeds" / "1" / "assets.extra" / "catbreeds.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    if content is not None:
        (tmp_path / "cat.jpg").write_bytes(content)
    assert_rejected(catbreeds("predict", "cat.jpg"), "catbreeds: cat.jpg: ", reason)


def test_sample_data_writes_the_requested_photos_and_rejects_an_invalid_number_of_breeds(catbreeds, tmp_path):
    done = catbreeds("sample-data", "photos", "--breeds", "2", "--photos", "1")
    assert done.returncode == 0
    assert done.stdout == "photos: 2 photos of 2 synthetic breeds\n"
    assert len(list(tmp_path.glob("photos/*/*.jpg"))) == 2
    assert_rejected(catbreeds("sample-data", "photos", "--breeds", "1"), "breeds must be 2 to")
