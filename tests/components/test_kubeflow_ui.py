"""Artifacts for the Kubeflow UI: metrics and matrices are in properties, and no artifact is empty."""

import math
from pathlib import Path

import pytest

from components.artifacts import ClassificationMetrics, Markdown, Metrics
from components.kubeflow_ui import set_confusion_matrix, set_metrics, write_page


@pytest.fixture
def artifact(tmp_path):
    def create(kind):
        created = kind()
        created.uri = str(tmp_path / "artifact")
        return created

    return create


def properties(artifact) -> set[str]:
    return set(artifact.mlmd_artifact.custom_properties)


def test_finite_numbers_are_properties_and_others_are_skipped(artifact):
    metrics = artifact(Metrics)
    set_metrics(
        metrics, {"accuracy": 0.5, "photos": 7, "loss": math.nan, "p": None, "best": -math.inf, "blessed": True}
    )
    assert properties(metrics) == {"accuracy", "photos", "blessed"}
    assert metrics.get_float_custom_property("photos") == 7
    assert metrics.get_float_custom_property("blessed") == 1


def test_a_confusion_matrix_has_the_format_of_the_ui(artifact):
    shown = artifact(ClassificationMetrics)
    set_confusion_matrix(shown, {"breeds": ["Birman", "Sphynx"], "rows": [[3, 1], [0, 2]]})
    assert shown.get_json_value_custom_property("confusionMatrix") == {
        "annotationSpecs": [{"displayName": "Birman"}, {"displayName": "Sphynx"}],
        "rows": [{"row": [3, 1]}, {"row": [0, 2]}],
    }


@pytest.mark.parametrize(
    ("kind", "set_value", "empty"), [(Metrics, set_metrics, {}), (ClassificationMetrics, set_confusion_matrix, None)]
)
def test_an_empty_value_gives_a_file_but_no_property(artifact, kind, set_value, empty):
    shown = artifact(kind)
    set_value(shown, empty)
    assert properties(shown) == set()
    assert [path.name for path in Path(shown.uri).iterdir()] == ["view.json"]


def test_a_page_is_written_to_the_uri_of_the_artifact(artifact):
    page = artifact(Markdown)
    write_page(page, "# größe 😺\n")
    assert Path(page.uri).read_text(encoding="utf-8") == "# größe 😺\n"
