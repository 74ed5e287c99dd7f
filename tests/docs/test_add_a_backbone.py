"""The instructions in docs/add-a-backbone.md work as written."""

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


def code_block(language: str) -> str:
    """Content of the only code block in `language`."""
    (content,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return content


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy of the code with the entry of the page at the end of ARCHITECTURES."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("components", "pipeline", "serving", "schemas", "docs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "components" / "candidates" / "architectures.py"
    before, after = path.read_text().split("\n}\n", 1)
    path.write_text(f"{before}\n{code_block('python')}}}\n{after}")
    return folder


def call(checkout, *command) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_profiles_and_reference_accept_the_new_backbone(checkout):
    (checkout / "mobile.yaml").write_text(code_block("yaml"))
    code = "from pipeline.settings import load; print(load('mobile.yaml').backbones)"
    assert "mobilenetv2" in call(checkout, sys.executable, "-c", code).stdout
    assert call(checkout, sys.executable, "docs/generate_reference.py").returncode == 0
    assert "`efficientnetb7` or `mobilenetv2`" in (checkout / "docs" / "configuration.md").read_text()


@pytest.mark.slow
def test_run_succeeds_with_the_new_backbone(checkout):
    sample_data, run, report = (shlex.split(line) for line in code_block("sh").splitlines())
    start = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    for command, *arguments in (sample_data, run, report):
        assert command == "catbreeds"
        done = call(checkout, *start, *arguments)
        # With random weights, the gate may pass or reject the candidate.
        assert done.returncode in ((0, 3) if arguments[0] == "run" else (0,)), done.stdout + done.stderr
    assert "mobilenetv2" in done.stdout
    comparison = json.loads((checkout / "runs/mobilenet/report/comparison.json").read_text())
    (row,) = (row for row in comparison["candidates"] if row["backbone"] == "mobilenetv2")
    assert 2e6 < row["parameters"] < 3e6
