"""JSON files in local or remote artifacts."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from components.errors import DamagedFileError
from components.local_copies import is_remote


def read_json(uri: str, name: str) -> Any:
    """Read the JSON file `name` in the folder `uri`.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFileError: If the file is not valid JSON.
    """
    return _parse(os.path.join(uri, name), json.loads)


def write_json(uri: str, name: str, document: Any) -> None:
    """Write `document` to the JSON file `name` in the folder `uri`; create the folder if it does not exist."""
    with _open(os.path.join(uri, name), "w") as file:
        file.write(json.dumps(document, indent=1, sort_keys=True))


def write_json_lines(uri: str, name: str, rows: Iterable[Any]) -> None:
    """Write a JSON Lines file in the directory `uri`: one line for each of `rows`."""
    with _open(os.path.join(uri, name), "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_json_lines(uri: str, name: str) -> list[Any]:
    """Read the JSON Lines file `name` in the folder `uri`; raise the same errors as `read_json`."""
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
    from tfx.dsl.io import fileio  # the import takes ten seconds

    if mode == "w":
        fileio.makedirs(os.path.dirname(path))
    return fileio.open(path, mode)
