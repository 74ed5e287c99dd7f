"""The notebooks run as they are on real runs, show what they promise, and lie in git without outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.settings import ROOT
from tests.running import catbreeds

FOLDER = ROOT / "notebooks"
NAMES = ("01_explore_the_data", "02_compare_backbones", "03_serve_and_query", "04_lineage_and_gate")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


class Shown:
    """What a reader of an executed notebook sees below its cells."""

    def __init__(self, name: str, workdir: Path):
        notebook = read(name)
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}})
        environment = {**os.environ, "CATBREEDS_WORKDIR": str(workdir), "PYTHONPATH": str(ROOT)}
        environment.pop("MPLBACKEND", None)  # Streamlit sets it where it is imported, and no plot would be shown
        client.execute(env=environment)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        data = [output.data for output in outputs if "data" in output]
        self.errors = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
        self.text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
        self.html = "\n".join(one.get("text/html", "") for one in data)
        self.plots = sum("image/png" in one for one in data)
        self.photos = self.html.count("data:image/jpeg;base64,")

    def assert_quiet(self) -> None:
        """Whoever opens it sees no warnings of libraries."""
        assert self.errors == ""


def test_these_are_all_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_what_it_shows_how_long_it_takes_and_what_it_needs(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    title, shows, takes = first.source.split("\n\n")
    assert re.fullmatch(rf"# {int(name[:2])}\. [A-Z].*", title)
    assert len(shows) > 80
    assert re.match(r"\*\*Takes\*\* .*(second|minute)", takes)
    assert "**Requires**" in takes


@pytest.mark.parametrize("name", NAMES)
def test_it_lies_in_git_without_outputs(name):
    strip = [sys.executable, "-m", "nbstripout", "--verify", FOLDER / f"{name}.ipynb"]
    done = subprocess.run(strip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"strip it: python -m nbstripout notebooks/*.ipynb\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_the_data_with_every_defect_is_explored_though_the_run_did_not_go_on(tmp_path):
    assert catbreeds("sample-data", "photos", "--defects", "--breeds", 2, "--photos", 12, cwd=tmp_path).returncode == 0
    ingested = catbreeds("schema", "update", "--data", "photos", "--workdir", "work", cwd=tmp_path)
    assert ingested.returncode == 0, ingested.stdout
    shown = Shown("01_explore_the_data", tmp_path / "work")
    shown.assert_quiet()
    for kind in ("damaged", "duplicate", "empty", "label_conflict", "near_duplicate", "not_an_image", "too_large"):
        assert kind in shown.html
    assert "film.jpg" in shown.html
    assert "Harbor Grey" in shown.html
    assert shown.plots == 2
    # A pair for each of the four copies, and four photos of each breed.
    assert shown.photos == 2 * 4 + 4 * 2


@pytest.mark.slow
def test_the_backbones_of_the_demo_are_compared(demo):
    shown = Shown("02_compare_backbones", demo.workdir)
    shown.assert_quiet()
    assert re.search(r"(xception|resnet50|efficientnetb7) wins, ", shown.text)
    assert shown.plots == 3
    for backbone in ("xception", "resnet50", "efficientnetb7"):
        assert f"<b>{backbone}</b><svg" in shown.html
    assert 0 < shown.photos <= 12


@pytest.mark.slow
def test_the_pushed_model_is_served_and_asked_both_ways(demo):
    shown = Shown("03_serve_and_query", demo.workdir)
    shown.assert_quiet()
    assert "catbreeds version 1: gRPC at localhost:" in shown.text
    for said in (
        "not an image: PhotoError",
        "truncated: PhotoError",
        "no such version: NotServed",
        "no such model: NotServed",
    ):
        assert said in shown.text
    assert "p90" in shown.html
    assert shown.photos == 12
    assert shown.plots == 2


@pytest.mark.slow
def test_the_pushed_model_is_traced_back_and_its_gate_asked_again(demo):
    shown = Shown("04_lineage_and_gate", demo.workdir)
    shown.assert_quiet()
    for origin in ("ImageExampleGen", "BackboneSelector", "weights_digest=", str(demo.photos)):
        assert origin in shown.html
    assert "version 1 was trained on it" in shown.text
    assert "gate.min_accuracy=0.25" in shown.text + shown.html
    assert shown.photos == 8
    assert shown.plots == 2


@pytest.mark.slow
def test_a_run_of_one_backbone_is_enough(small):
    shown = Shown("02_compare_backbones", small.workdir)
    assert "resnet50 wins, the only candidate" in shown.text
    assert shown.plots == 3
    assert Shown("04_lineage_and_gate", small.workdir).plots == 2
