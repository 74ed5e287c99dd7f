"""Escape text for Streamlit, which renders all text as Markdown."""

import re

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def escape_markdown(text: str) -> str:
    """Return Markdown that renders as `text`; names of files and breeds may contain any character."""
    return _PUNCTUATION.sub(r"\\\g<0>", text)
