"""YAML loader that rejects duplicate keys; PyYAML silently keeps the last one."""

from collections.abc import Iterator
from typing import Any

import yaml

_MERGE_TAG = "tag:yaml.org,2002:merge"


class DuplicateKey(yaml.MarkedYAMLError):
    """A mapping contains a key twice; the message names the key and both lines."""

    def __init__(self, key: str, first: yaml.Mark, second: yaml.Mark):
        super().__init__(problem_mark=second)
        self.key = key
        self._first, self._second = first.line + 1, second.line + 1

    def __str__(self) -> str:
        where = f"line {self._second}" if self._first == self._second else f"lines {self._first} and {self._second}"
        return f"{where}: duplicate key {self.key!r}; remove one"


class _Loader(yaml.CSafeLoader):
    def __init__(self, stream: str | bytes):
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # PyYAML may call this several times for a mapping. It replaces merge keys (<<) with the keys that they merge,
        # so only the first call sees the keys as written.
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._reject_duplicates(node)
        super().flatten_mapping(node)

    def _reject_duplicates(self, node: yaml.MappingNode) -> None:
        marks: dict[object, yaml.Mark] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key = key_node.value if key_node.tag == _MERGE_TAG else self.construct_object(key_node)
                if key in marks:
                    raise DuplicateKey(key_node.value, marks[key], key_node.start_mark)
                marks[key] = key_node.start_mark


def load(text: str | bytes) -> Any:
    """Parse the only document in `text`.

    Raises:
        DuplicateKey: If a mapping contains a key twice.
        yaml.YAMLError: If `text` is not YAML or contains several documents.
    """
    return yaml.load(text, _Loader)


def load_all(text: str | bytes) -> Iterator[Any]:
    """Parse every document in `text`; raises the same errors as `load`."""
    return yaml.load_all(text, _Loader)
