"""The page about adding a backbone, performed as it is written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from pipeline.settings import ROOT

PAGE = (ROOT / "docs" / "add-a-backbone.md").read_text()


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code with the page's entry at the end of ARCHITECTURES."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("components", "pipeline", "serving", "schemas", "docs"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "components" / "candidates" / "architectures.py"
    before, after = path.read_text().split("\n}\n", 1)
    path.write_text(f"{before}\n{block('python')}}}\n{after}")
    return folder


def call(checkout, *command) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_a_profile_and_the_reference_know_it(checkout):
    (checkout / "mobile.yaml").write_text(block("yaml"))
    code = "from pipeline.settings import load; print(load('mobile.yaml').backbones)"
    assert "mobilenetv2" in call(checkout, sys.executable, "-c", code).stdout
    assert call(checkout, sys.executable, "docs/reference.py").returncode == 0
    assert "`efficientnetb7` or `mobilenetv2`" in (checkout / "docs" / "configuration.md").read_text()


@pytest.mark.slow
def test_it_goes_through_a_whole_run(checkout):
    draw, run, report = (shlex.split(line) for line in block("sh").splitlines())
    start = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    for command, *arguments in (draw, run, report):
        assert command == "catbreeds"
        done = call(checkout, *start, *arguments)
        # Whether the gate admits what was learned on random weights is luck.
        assert done.returncode in ((0, 3) if arguments[0] == "run" else (0,)), done.stdout + done.stderr
    assert "mobilenetv2" in done.stdout
    comparison = json.loads((checkout / "runs/mobilenet/report/comparison.json").read_text())
    (row,) = (row for row in comparison["candidates"] if row["backbone"] == "mobilenetv2")
    assert 2e6 < row["parameters"] < 3e6
