"""Artifacts that the Kubeflow UI visualizes: metrics and confusion matrices in properties, pages in files.

Metrics are also written to a file, because an object store loses artifacts without files.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from tfx.dsl.io import fileio

from components.artifacts import HTML, ClassificationMetrics, Markdown, Metrics
from components.json_files import write_json

VIEW_FILE = "view.json"
# Characters that Markdown, or HTML in it, treats as markup. In CommonMark a backslash escapes each of them.
_MARKUP = re.compile(r"[\\`*_~<>\[\]|&#!]|^[-+]", re.MULTILINE)


def set_metrics(artifact: Metrics, numbers: Mapping[str, float | None]) -> None:
    """Set the numbers as properties of the artifact; skip numbers that are None or not finite."""
    finite = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
    for name, value in finite.items():
        artifact.set_float_custom_property(name, value)
    write_json(artifact.uri, VIEW_FILE, finite)


def set_confusion_matrix(artifact: ClassificationMetrics, confusion: Mapping[str, Any] | None) -> None:
    """Set the confusion matrix of metrics.json: `rows[i][j]` photos of `breeds[i]` were predicted as `breeds[j]`."""
    matrix = confusion and {
        "annotationSpecs": [{"displayName": breed} for breed in confusion["breeds"]],
        "rows": [{"row": row} for row in confusion["rows"]],
    }
    if matrix:
        artifact.set_json_value_custom_property("confusionMatrix", matrix)
    write_json(artifact.uri, VIEW_FILE, matrix)


def escape_markdown(text: str) -> str:
    """Escape `text`, which may include breed names, so that Markdown shows it literally."""
    return _MARKUP.sub(r"\\\g<0>", text)


def write_page(artifact: HTML | Markdown, text: str) -> None:
    """Write an HTML or Markdown page to the URI of the artifact."""
    fileio.makedirs(os.path.dirname(artifact.uri))
    with fileio.open(artifact.uri, "w") as file:
        file.write(text)
