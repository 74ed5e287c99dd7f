"""Terminal output at different widths and without colors, and concurrent runs."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import fork_server
from tests.running import CATBREEDS, SMALL, catbreeds, on_terminal

DEADLINE = 600  # seconds
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


@pytest.fixture(scope="module", params=[60, 80])
def columns(request) -> int:
    return request.param


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report"], ["efficientnetb7", "resnet50", "xception", "95% CI", "top-3 accuracy", "latency (ms)", "Gate: "]),
        (["report", "--photos"], ["Emberling", "train", "eval", "test"]),
        (["models"], ["version 1", "accuracy"]),
        (["lineage", "1"], ["ImageExampleGen", "Pusher"]),
        (["doctor", "--profile", "demo"], ["Python", "TFX's imports", "port 8501"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_narrow_terminal_truncates_nothing(demo, columns, arguments, expected):
    code, output = on_terminal(columns, *arguments, "--workdir", demo.workdir)
    assert code == 0, output
    text = CONTROL.sub("", output)
    for part in expected:
        assert part in text
    assert "…" not in text
    unwrapped = ("Report: ",)  # links are not wrapped
    assert max(len(line) for line in text.splitlines() if not line.startswith(unwrapped)) <= columns


def test_comparison_is_complete_on_a_terminal_of_60_columns(demo):
    wide = CONTROL.sub("", on_terminal(200, "report", "--workdir", demo.workdir)[1])
    narrow = CONTROL.sub("", on_terminal(60, "report", "--workdir", demo.workdir)[1])
    rows = [line.split() for line in wide.splitlines() if line.startswith("│")]
    assert len(rows) == 16
    assert [line.split() for line in narrow.splitlines() if line.startswith("│")] == rows


@pytest.mark.parametrize("arguments", [["report"], ["models"], ["doctor", "--profile", "demo"]], ids=" ".join)
def test_no_color_and_pipes_disable_colors(demo, arguments):
    arguments = [*arguments, "--workdir", demo.workdir]
    assert COLOR.search(on_terminal(80, *arguments)[1])
    assert not COLOR.search(on_terminal(80, *arguments, NO_COLOR="1")[1])
    assert "\x1b" not in catbreeds(*arguments).stdout


@pytest.mark.slow
def test_concurrent_runs_in_two_workdirs_succeed_and_in_one_workdir_fail(generate_photos, tmp_path):
    """One run has a terminal without colors, the other has no terminal. All paths contain spaces."""
    photos = tmp_path / "my photos"
    generate_photos(breeds=3, photos=25).rename(photos)
    open_gate = ("gate.min_accuracy=0", "gate.min_test_photos=1")  # the decision does not matter here
    settings = [part for setting in (*SMALL, *open_gate) for part in ("--set", setting)]
    first, second = tmp_path / "first run", tmp_path / "second run"

    def arguments(workdir) -> list[str]:
        return ["run", "--profile", "demo", "--data", str(photos), "--workdir", str(workdir), *settings]

    with ThreadPoolExecutor() as pool:
        on_screen = pool.submit(on_terminal, 60, *arguments(first), NO_COLOR="1")
        concurrent = fork_server.Popen([CATBREEDS, *arguments(second)], stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + DEADLINE
        while not list(first.glob("logs/*.log")):
            assert time.monotonic() < end
            time.sleep(0.05)
        third = catbreeds(*arguments(first))
        assert not on_screen.done()
        code, output = on_screen.result()
        plain = concurrent.communicate()[0]

    assert third.returncode == 2
    assert third.stdout == ""
    assert f"{first}: another run is in progress; wait for it or choose another --workdir" in third.stderr
    assert (code, concurrent.returncode) == (0, 0), output + plain
    assert not COLOR.search(output)
    assert "…" not in output
    assert "\x1b" not in plain
    for workdir in (first, second):
        shown = catbreeds("models", "--workdir", workdir)
        assert "version 1 stable" in shown.stdout
        assert "version 2" not in shown.stdout
    photo = next(photos.glob("*/*.jpg"))
    assert f"{photo}: " in catbreeds("predict", photo, "--workdir", first).stdout
