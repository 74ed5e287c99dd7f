"""The notebooks execute on real runs, show the expected results, and are committed without outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.settings import ROOT
from serving.registry import Registry
from tests.running import catbreeds

FOLDER = ROOT / "notebooks"
NAMES = (
    "01_explore_the_data",
    "02_compare_backbones",
    "03_serve_and_query",
    "04_lineage_and_gate",
    "05_learn_from_user_photos",
)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


class ExecutedNotebook:
    """Outputs of an executed notebook.

    Attributes:
        errors: Text on stderr.
        text: Text on stdout.
        html: HTML outputs.
        plots: Number of plots.
        photos: Number of photos in the HTML outputs.
    """

    def __init__(self, name: str, workdir: Path):
        notebook = read(name)
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}})
        environment = {**os.environ, "CATBREEDS_WORKDIR": str(workdir), "PYTHONPATH": str(ROOT)}
        environment.pop("MPLBACKEND", None)  # Streamlit sets the variable on import, which would suppress plots
        client.execute(env=environment)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        data = [output.data for output in outputs if "data" in output]
        self.errors = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
        self.text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
        self.html = "\n".join(one.get("text/html", "") for one in data)
        self.plots = sum("image/png" in one for one in data)
        self.photos = self.html.count("data:image/jpeg;base64,")

    def assert_no_warnings(self) -> None:
        """Check that libraries print no warnings."""
        assert self.errors == ""


def test_names_lists_all_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_starts_with_title_summary_duration_and_requirements(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    title, summary, duration = first.source.split("\n\n")
    assert re.fullmatch(rf"# {int(name[:2])}\. [A-Z].*", title)
    assert len(summary) > 80
    assert re.match(r"\*\*Takes\*\* .*(second|minute)", duration)
    assert "**Requires**" in duration


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_committed_without_outputs(name):
    strip = [sys.executable, "-m", "nbstripout", "--verify", FOLDER / f"{name}.ipynb"]
    done = subprocess.run(strip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python -m nbstripout notebooks/*.ipynb`\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_data_notebook_shows_all_defects_after_an_incomplete_run(tmp_path):
    assert catbreeds("sample-data", "photos", "--defects", "--breeds", 2, "--photos", 12, cwd=tmp_path).returncode == 0
    ingested = catbreeds("schema", "update", "--data", "photos", "--workdir", "work", cwd=tmp_path)
    assert ingested.returncode == 0, ingested.stdout
    executed = ExecutedNotebook("01_explore_the_data", tmp_path / "work")
    executed.assert_no_warnings()
    for kind in ("damaged", "duplicate", "empty", "label_conflict", "near_duplicate", "not_an_image", "too_large"):
        assert kind in executed.html
    assert "film.jpg" in executed.html
    assert "Harbor Grey" in executed.html
    assert executed.plots == 2
    # Two photos for each of the four duplicates, and four photos of each breed.
    assert executed.photos == 2 * 4 + 4 * 2


@pytest.mark.slow
def test_backbone_notebook_compares_the_backbones_of_the_demo(demo):
    executed = ExecutedNotebook("02_compare_backbones", demo.workdir)
    executed.assert_no_warnings()
    assert re.search(r"(xception|resnet50|efficientnetb7) wins, ", executed.text)
    assert executed.plots == 3
    for backbone in ("xception", "resnet50", "efficientnetb7"):
        assert f"<b>{backbone}</b><svg" in executed.html
    assert 0 < executed.photos <= 12


@pytest.mark.slow
def test_serving_notebook_queries_the_pushed_model_over_grpc_and_rest(demo):
    executed = ExecutedNotebook("03_serve_and_query", demo.workdir)
    executed.assert_no_warnings()
    assert "catbreeds version 1: gRPC at localhost:" in executed.text
    for error in (
        "not an image: PhotoError",
        "truncated: PhotoError",
        "no such version: NotServed",
        "no such model: NotServed",
    ):
        assert error in executed.text
    assert "p90" in executed.html
    assert executed.photos == 12
    assert executed.plots == 2


@pytest.mark.slow
def test_lineage_notebook_traces_the_pushed_model_and_repeats_the_gate(demo):
    executed = ExecutedNotebook("04_lineage_and_gate", demo.workdir)
    executed.assert_no_warnings()
    for origin in ("ImageExampleGen", "BackboneSelector", "weights_digest=", str(demo.photos)):
        assert origin in executed.html
    assert "version 1 was trained on it" in executed.text
    assert "gate.min_accuracy=0.25" in executed.text + executed.html
    assert "gate.policy=no_harm with gate.margin=0.04 rejects" in executed.text
    assert "photos_needed" in executed.html
    assert executed.photos == 8
    assert executed.plots == 2


@pytest.mark.slow
def test_notebooks_accept_a_run_with_one_backbone(small):
    executed = ExecutedNotebook("02_compare_backbones", small.workdir)
    assert "resnet50 wins, the only candidate" in executed.text
    assert executed.plots == 3
    assert ExecutedNotebook("04_lineage_and_gate", small.workdir).plots == 2


@pytest.mark.slow
def test_feedback_notebook_trains_a_version_that_is_better_at_night(feedback_run, feedback_copy):
    executed = ExecutedNotebook("05_learn_from_user_photos", feedback_run.workdir)
    executed.assert_no_warnings()
    assert Registry(feedback_run.workdir / "serving" / "catbreeds").stable() == 2
    assert re.search(r"^drift  brightness: ", executed.text, re.MULTILINE)
    assert re.search(r"[1-9]\d* of \d+ photos are for train only", executed.text)
    assert re.search(r"version 2 learned from \d{2,3} stored photos", executed.text)
    assert executed.photos == 24
