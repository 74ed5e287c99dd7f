"""Writes the schema of a data set for review: the breeds it has now, and every bound that was set by hand."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format

from components.errors import DataError
from components.ingestion.data_gate import breed_domain
from pipeline.datasets.schema_file import SCHEMA_FILE, read_schema
from serving.names import distinguishable, spelling_variants


class Update(NamedTuple):
    """What changed in a schema.

    Attributes:
        path: the file that was written.
        added: breeds of the data that it did not have.
        unused: breeds it has and the data has not; they stay.
    """

    path: Path
    added: list[str]
    unused: list[str]


def update_schema(folder: Path, template: Path, breeds: dict[str, Any]) -> Update:
    """Adds `breeds` to the schema in `folder`, which starts as a copy of the file `template`.

    Everything else stays as it is: bounds, comparators, the comment at the top (others would get lost, so none are
    written there).

    Raises:
        ValueError: the file is no schema.
        DataError: a breed of the data has another spelling there.
    """
    path = folder / SCHEMA_FILE
    start = path if path.exists() else template
    text, schema = start.read_text(encoding="utf-8"), read_schema(start)
    known = breed_domain(schema)
    if known is None:
        feature = next(feature for feature in schema.feature if feature.name == "breed")
        known = feature.string_domain
        known.name = "breeds"
    if groups := spelling_variants([*known.value, *breeds]):
        names = "; ".join(map(distinguishable, groups))
        raise DataError(f"{path}: the same breed in two spellings: {names}; rename the folder, or mend that file")
    added = sorted(set(breeds) - set(known.value))
    known.value.extend(added)
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(comment + text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")
    return Update(path, added, sorted(set(known.value) - set(breeds)))
