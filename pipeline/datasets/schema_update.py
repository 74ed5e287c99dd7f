"""Add the breeds of a data set to its schema, and keep bounds that were set by hand."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format

from components.errors import DataError
from components.ingestion.data_gate import breed_domain
from pipeline.datasets.schema_file import SCHEMA_FILE, read_schema
from serving.names import distinguishable, spelling_variants


class SchemaUpdate(NamedTuple):
    """Changes to a schema.

    Attributes:
        path: Schema file that was written.
        added: Breeds that were added.
        unused: Breeds of the schema that have no photos; they are kept.
    """

    path: Path
    added: list[str]
    unused: list[str]


def update_schema(folder: Path, template: Path, breeds: dict[str, Any]) -> SchemaUpdate:
    """Add `breeds` to the schema in `folder`, which is created as a copy of the file `template` if it does not exist.

    Bounds, comparators and the comment at the top of the file are kept. Other comments are lost.

    Raises:
        ValueError: If the file is not a schema.
        DataError: If the schema has another spelling of a breed.
    """
    path = folder / SCHEMA_FILE
    source = path if path.exists() else template
    text, schema = source.read_text(encoding="utf-8"), read_schema(source)
    domain = breed_domain(schema)
    if domain is None:
        feature = next(feature for feature in schema.feature if feature.name == "breed")
        domain = feature.string_domain
        domain.name = "breeds"
    if groups := spelling_variants([*domain.value, *breeds]):
        names = "; ".join(map(distinguishable, groups))
        raise DataError(f"{path}: the same breed in two spellings: {names}; rename the folder, or edit this file")
    added = sorted(set(breeds) - set(domain.value))
    domain.value.extend(added)
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(comment + text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")
    return SchemaUpdate(path, added, sorted(set(domain.value) - set(breeds)))
