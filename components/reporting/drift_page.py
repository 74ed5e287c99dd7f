"""The page of `catbreeds drift`: a chart for each feature, and the photos that are most unlike the training photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.photo_examples import thumbnail_data_url
from components.reporting import charts
from components.reporting.html_templates import render


def drift_page(
    result: Mapping[str, Any],
    summary: str,
    test: Sequence[Mapping[str, Any]],
    captured: Sequence[Mapping[str, Any]],
    examples: Sequence[tuple[Path, str]],
) -> str:
    """Return the page.

    Args:
        result: Document that `catbreeds drift --json` prints.
        summary: The result in words.
        test: Features of the test photos.
        captured: Features of the captured photos.
        examples: Paths of photos to show, with their captions. Photos that no longer exist are left out.
    """
    return render(
        "drift",
        result=result,
        summary=summary,
        features=[
            check | {"chart": _chart(check["feature"], check["title"], test, captured)} for check in result["checks"]
        ],
        examples=[(thumbnail_data_url(path.read_bytes()), text) for path, text in examples if path.exists()],
    )


def _chart(
    name: str, title: str, test: Sequence[Mapping[str, Any]], captured: Sequence[Mapping[str, Any]]
) -> charts.Markup:
    old, new = [row[name] for row in test], [row[name] for row in captured]
    draw = charts.two_shares if isinstance(old[0], str | bool) else charts.two_distributions
    return draw(name, title, old, new)
