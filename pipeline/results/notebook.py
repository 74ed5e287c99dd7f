"""Display helpers for notebooks: photo grids, charts of the report side by side, and the report's plot style."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from IPython.display import HTML
from markupsafe import Markup

from components.photo_examples import thumbnail_data_url
from components.reporting.charts import STYLE
from pipeline.console import noise_to


def set_up() -> None:
    """Apply the report's plot style on a white background and hide TensorFlow's log messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with noise_to(Path(os.devnull)):
        import tensorflow  # noqa: F401
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    matplotlib.rcParams.update(STYLE | {"figure.facecolor": "white", "figure.constrained_layout.use": True})


def photo_grid(photos: Iterable[tuple[bytes, str]], columns: int = 6) -> HTML:
    """Photos in a grid, each above its caption.

    Args:
        photos: Pairs of the file's bytes and the caption; line breaks in the caption are kept.
        columns: Number of photos in a row.
    """
    figure = Markup(
        '<figure style="margin:0"><img src="{}" style="height:7.5rem;max-width:10rem;object-fit:contain">'
        '<figcaption style="font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere">{}</figcaption>'
        "</figure>"
    )
    parts = (figure.format(thumbnail_data_url(content), caption) for content, caption in photos)
    return _container(f"display:grid;grid-template-columns:repeat({columns},10rem);gap:1rem", parts)


def side_by_side(charts: Iterable[tuple[str, Markup]]) -> HTML:
    """Charts from `components.reporting.charts` in a row, each below its title."""
    box = Markup('<div style="width:21rem;padding:.5rem;background:white;color:#1f2430"><b>{}</b>{}</div>')
    return _container("display:flex;flex-wrap:wrap;gap:1rem", (box.format(title, chart) for title, chart in charts))


def _container(style: str, parts: Iterable[Markup]) -> HTML:
    return HTML(Markup('<div style="{}">{}</div>').format(style, Markup("").join(parts)))
