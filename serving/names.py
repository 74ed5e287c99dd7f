"""Names of files, breeds and labels: which files are never photos, how a name is shown, and when two are one name."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Files and folders that operating systems, file managers and network drives create. Compared without case.
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
# Unicode categories: control characters, separators of lines and paragraphs.
_CONTROLS = ("Cc", "Zl", "Zp")
_NOT_UTF_8 = "Cs"
# Dashes and underscores: Maine_Coon and Maine Coon are one breed.
_BETWEEN_WORDS = ("Pd", "Pc")
# Characters that nothing is drawn for, apart from those of category Cf: Unicode's Default_Ignorable_Code_Point, and the
# blank pattern of Braille.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or created by a system: it never holds a user's photos."""
    return name.startswith((".", "@__", "@Recently")) or name.casefold() in _CREATED_BY_SYSTEMS


def printable(name: str) -> str:
    """`name` as valid Unicode on one line: bytes that are not UTF-8 and control characters become escapes."""
    if name.isprintable():
        return name
    return "".join(_escaped(char) if unicodedata.category(char) in (*_CONTROLS, _NOT_UTF_8) else char for char in name)


def is_one_line(name: str) -> bool:
    """Whether it has no control characters."""
    return not any(unicodedata.category(char) in _CONTROLS for char in name)


def is_utf_8(name: str) -> bool:
    """Whether it is valid Unicode; bytes of a file name that are not UTF-8 are not."""
    return not any(unicodedata.category(char) == _NOT_UTF_8 for char in name)


def is_header_value(text: str) -> bool:
    """Whether an HTTP header can carry it."""
    return text.isascii() and text.isprintable()


def spelling(name: str) -> str:
    """What is equal for names that differ only in Unicode form, case, invisible characters or what is between words."""
    visible = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    visible = _INVISIBLE.sub("", visible)
    words = "".join(" " if unicodedata.category(char) in _BETWEEN_WORDS else char for char in visible).split()
    return unicodedata.normalize("NFKC", " ".join(words or visible.split()).casefold())


def respelled(names: Iterable[str]) -> list[list[str]]:
    """The groups of different names that have the same `spelling`, each sorted."""
    groups = defaultdict(set)
    for name in names:
        groups[spelling(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural unless it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def distinguishable(names: Iterable[str]) -> str:
    """Names in ASCII with escapes, so that the difference between those that look the same can be seen."""
    return " and ".join(ascii(name) for name in names)


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # how Python keeps a byte of a file name that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()
