"""Render self-contained HTML pages from the templates next to this module; the pages use no network and no scripts."""

from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Render `template` (a file name without .html.j2). Every value except `Markup` is escaped."""
    return _TEMPLATES.get_template(f"{template}.html.j2").render(**values)
