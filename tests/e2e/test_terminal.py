"""What people see, however narrow or plain their terminal; and runs that meet each other."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import fork_server
from tests.running import CATBREEDS, SMALL, catbreeds, on_terminal

DEADLINE = 600  # seconds; generous, for it decides no test
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


@pytest.fixture(scope="module", params=[60, 80])
def columns(request) -> int:
    return request.param


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["report"], ["efficientnetb7", "resnet50", "xception", "95 % interval", "top-3", "ms", "Gate: "]),
        (["report", "--data"], ["Emberling", "train", "eval", "test"]),
        (["models"], ["version 1", "accuracy"]),
        (["lineage", "1"], ["ImageExampleGen", "Pusher"]),
        (["doctor", "--profile", "demo"], ["Python", "TFX's imports", "port 8501"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_on_a_narrow_terminal_nothing_is_cut_off(demo, columns, arguments, shown):
    code, output = on_terminal(columns, *arguments, "--workdir", demo.workdir)
    assert code == 0, output
    text = CONTROL.sub("", output)
    for part in shown:
        assert part in text
    assert "…" not in text
    whole = ("Report: ",)  # an address to click on is not broken
    assert max(len(line) for line in text.splitlines() if not line.startswith(whole)) <= columns


def test_every_number_of_the_comparison_is_on_a_terminal_of_60_columns(demo):
    wide = CONTROL.sub("", on_terminal(200, "report", "--workdir", demo.workdir)[1])
    narrow = CONTROL.sub("", on_terminal(60, "report", "--workdir", demo.workdir)[1])
    rows = [line.split() for line in wide.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert [line.split() for line in narrow.splitlines() if line.startswith("│")] == rows


@pytest.mark.parametrize("arguments", [["report"], ["models"], ["doctor", "--profile", "demo"]], ids=" ".join)
def test_colours_are_left_out_where_they_are_not_wanted(demo, arguments):
    arguments = [*arguments, "--workdir", demo.workdir]
    assert COLOUR.search(on_terminal(80, *arguments)[1])
    assert not COLOUR.search(on_terminal(80, *arguments, NO_COLOR="1")[1])
    assert "\x1b" not in catbreeds(*arguments).stdout


@pytest.mark.slow
def test_two_runs_go_on_side_by_side_in_paths_with_spaces_and_a_third_is_sent_away(generate_photos, tmp_path):
    """One in a terminal without colours, one without a terminal."""
    photos = tmp_path / "my photos"
    generate_photos(breeds=3, photos=25).rename(photos)
    admitted = ("gate.min_accuracy=0", "gate.min_test_photos=1")  # the decision is not what this is about
    settings = [part for setting in (*SMALL, *admitted) for part in ("--set", setting)]
    first, second = tmp_path / "first run", tmp_path / "second run"

    def arguments(workdir) -> list[str]:
        return ["run", "--profile", "demo", "--data", str(photos), "--workdir", str(workdir), *settings]

    with ThreadPoolExecutor() as pool:
        on_screen = pool.submit(on_terminal, 60, *arguments(first), NO_COLOR="1")
        beside = fork_server.Popen([CATBREEDS, *arguments(second)], stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + DEADLINE
        while not list(first.glob("logs/*.log")):
            assert time.monotonic() < end
            time.sleep(0.05)
        third = catbreeds(*arguments(first))
        assert not on_screen.done()
        code, output = on_screen.result()
        plain = beside.communicate()[0]

    assert third.returncode == 2
    assert third.stdout == ""
    assert f"{first}: another run is at work there; wait for it or take another --workdir" in third.stderr
    assert (code, beside.returncode) == (0, 0), output + plain
    assert not COLOUR.search(output)
    assert "…" not in output
    assert "\x1b" not in plain
    for workdir in (first, second):
        shown = catbreeds("models", "--workdir", workdir)
        assert "version 1 stable" in shown.stdout
        assert "version 2" not in shown.stdout
    photo = next(photos.glob("*/*.jpg"))
    assert f"{photo}: " in catbreeds("predict", photo, "--workdir", first).stdout
