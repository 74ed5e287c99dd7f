"""Text for Streamlit, which takes everything for Markdown."""

import re

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def escape_markdown(text: str) -> str:
    """Markdown that shows `text` as it is: names of files and breeds may contain anything."""
    return _PUNCTUATION.sub(r"\\\g<0>", text)
