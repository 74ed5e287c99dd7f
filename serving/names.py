"""Names of files, breeds and labels: ignored names, safe display, and equivalent spellings."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Files and folders that operating systems, file managers and network drives create; compared case-insensitively.
_CREATED_BY_SYSTEMS = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recycle",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
# Unicode categories of control characters, line separators and paragraph separators.
_CONTROLS = ("Cc", "Zl", "Zp")
_NOT_UTF_8 = "Cs"
# Unicode categories of dashes and underscores: Maine_Coon and Maine Coon are the same breed.
_WORD_SEPARATORS = ("Pd", "Pc")
# Invisible characters outside category Cf: Unicode's Default_Ignorable_Code_Point and the blank Braille pattern.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or created by a system, and so never holds photos."""
    return name.startswith((".", "@__", "@Recently")) or name.casefold() in _CREATED_BY_SYSTEMS


def printable(name: str) -> str:
    """Return `name` as valid Unicode on one line, with non-UTF-8 bytes and control characters escaped."""
    if name.isprintable():
        return name
    return "".join(_escaped(char) if unicodedata.category(char) in (*_CONTROLS, _NOT_UTF_8) else char for char in name)


def is_one_line(name: str) -> bool:
    """Return whether the name has no control characters."""
    return not any(unicodedata.category(char) in _CONTROLS for char in name)


def is_utf_8(name: str) -> bool:
    """Return whether the name is valid Unicode; Python decodes non-UTF-8 bytes of file names to surrogates."""
    return not any(unicodedata.category(char) == _NOT_UTF_8 for char in name)


def is_header_value(text: str) -> bool:
    """Return whether the text is a valid HTTP header value."""
    return text.isascii() and text.isprintable()


def spelling(name: str) -> str:
    """Return a key that ignores differences in Unicode form, case, separators and invisible characters."""
    visible = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    visible = _INVISIBLE.sub("", visible)
    words = "".join(" " if unicodedata.category(char) in _WORD_SEPARATORS else char for char in visible).split()
    return unicodedata.normalize("NFKC", " ".join(words or visible.split()).casefold())


def spelling_variants(names: Iterable[str]) -> list[list[str]]:
    """Return the sorted groups of different names that have the same `spelling`."""
    groups = defaultdict(set)
    for name in names:
        groups[spelling(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def counted(number: int, noun: str) -> str:
    """Return the number with the noun, in the plural unless the number is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def distinguishable(names: Iterable[str]) -> str:
    """Return the names as ASCII with escapes, so that names that look the same can be distinguished."""
    return " and ".join(ascii(name) for name in names)


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # Python decodes a non-UTF-8 byte of a file name to U+DC00 plus the byte
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()
