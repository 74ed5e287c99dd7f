"""Pages for people: self-contained HTML from the templates beside this module, with no network and no scripts."""

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
    """The page of `template` (its file name without .html.j2); every value is escaped, but what is `Markup`."""
    return _TEMPLATES.get_template(f"{template}.html.j2").render(**values)
