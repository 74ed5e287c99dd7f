"""What the Kubeflow UI shows: its numbers and matrices are in properties, and no artifact is empty."""

import math
from pathlib import Path

import pytest

from components.artifacts import ClassificationMetrics, Markdown, Metrics
from components.kubeflow_ui import set_confusion_matrix, set_metrics, write_page


@pytest.fixture
def artifact(tmp_path):
    def make(kind):
        found = kind()
        found.uri = str(tmp_path / "artifact")
        return found

    return make


def properties(artifact) -> set[str]:
    return set(artifact.mlmd_artifact.custom_properties)


def test_numbers_are_rows_and_those_that_a_metadata_store_cannot_hold_are_none(artifact):
    metrics = artifact(Metrics)
    set_metrics(
        metrics, {"accuracy": 0.5, "photos": 7, "loss": math.nan, "p": None, "best": -math.inf, "blessed": True}
    )
    assert properties(metrics) == {"accuracy", "photos", "blessed"}
    assert metrics.get_float_custom_property("photos") == 7
    assert metrics.get_float_custom_property("blessed") == 1


def test_a_matrix_has_the_form_that_the_ui_reads(artifact):
    shown = artifact(ClassificationMetrics)
    set_confusion_matrix(shown, {"breeds": ["Birman", "Sphynx"], "rows": [[3, 1], [0, 2]]})
    assert shown.get_json_value_custom_property("confusionMatrix") == {
        "annotationSpecs": [{"displayName": "Birman"}, {"displayName": "Sphynx"}],
        "rows": [{"row": [3, 1]}, {"row": [0, 2]}],
    }


@pytest.mark.parametrize(
    ("kind", "show", "nothing"), [(Metrics, set_metrics, {}), (ClassificationMetrics, set_confusion_matrix, None)]
)
def test_with_nothing_to_show_there_is_no_property_but_a_file(artifact, kind, show, nothing):
    shown = artifact(kind)
    show(shown, nothing)
    assert properties(shown) == set()
    assert [path.name for path in Path(shown.uri).iterdir()] == ["view.json"]


def test_a_page_is_the_file_at_its_uri(artifact):
    page = artifact(Markdown)
    write_page(page, "# größe 😺\n")
    assert Path(page.uri).read_text(encoding="utf-8") == "# größe 😺\n"
