"""JSON documents inside artifacts, local or remote."""

import json
import os
from collections.abc import Callable
from typing import Any

from components.errors import DamagedFileError
from components.local_copies import is_remote


def read_json(uri: str, name: str) -> Any:
    """The JSON document `name` below `uri`.

    Raises:
        FileNotFoundError: it is not there.
        DamagedFileError: it is damaged.
    """
    return _parse(os.path.join(uri, name), json.loads)


def write_json(uri: str, name: str, document: Any) -> None:
    """Writes the JSON document `name` below `uri`, making its folder."""
    with _open(os.path.join(uri, name), "w") as file:
        file.write(json.dumps(document, indent=1, sort_keys=True))


def read_json_lines(uri: str, name: str) -> list[Any]:
    """The JSON documents in the lines of `name` below `uri`; raises as `read_json`."""
    return _parse(os.path.join(uri, name), lambda text: [json.loads(line) for line in text.splitlines()])


def _parse(path: str, parse: Callable[[str], Any]) -> Any:
    with _open(path, "r") as file:
        try:
            return parse(file.read())
        except ValueError as error:
            raise DamagedFileError(f"{path}: damaged: {error}") from None


def _open(path: str, mode: str):
    if not is_remote(path):
        if mode == "w":
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, mode, encoding="utf-8")
    from tfx.dsl.io import fileio  # takes ten seconds to import

    if mode == "w":
        fileio.makedirs(os.path.dirname(path))
    return fileio.open(path, mode)
