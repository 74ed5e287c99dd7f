"""What the Kubeflow UI shows of a component: numbers and a confusion matrix in properties, pages in files.

The numbers are in a file as well: an artifact without content gets lost on its way through an object store.
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
# What Markdown or the HTML in it would take for markup. CommonMark shows each of these characters after a backslash.
_MARKDOWN = re.compile(r"[\\`*_~<>\[\]|&#!]|^[-+]", re.MULTILINE)


def set_metrics(artifact: Metrics, numbers: Mapping[str, float | None]) -> None:
    """Shows each number under its name; one that is not finite, or None, is not shown."""
    finite = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
    for name, value in finite.items():
        artifact.set_float_custom_property(name, value)
    write_json(artifact.uri, VIEW_FILE, finite)


def set_confusion_matrix(artifact: ClassificationMetrics, confusion: Mapping[str, Any] | None) -> None:
    """Shows a matrix as metrics.json has it: `rows[i][j]` photos of `breeds[i]` were called `breeds[j]`; None: none."""
    matrix = confusion and {
        "annotationSpecs": [{"displayName": breed} for breed in confusion["breeds"]],
        "rows": [{"row": row} for row in confusion["rows"]],
    }
    if matrix:
        artifact.set_json_value_custom_property("confusionMatrix", matrix)
    write_json(artifact.uri, VIEW_FILE, matrix)


def plain_markdown(text: str) -> str:
    """Markdown that shows `text` as it is, with the names of breeds that are in it."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


def write_page(artifact: HTML | Markdown, text: str) -> None:
    """Shows a page."""
    fileio.makedirs(os.path.dirname(artifact.uri))
    with fileio.open(artifact.uri, "w") as file:
        file.write(text)
