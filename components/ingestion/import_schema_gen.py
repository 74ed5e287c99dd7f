"""ImportSchemaGen: the reviewed schema enters the pipeline by its text, so no run reads another one than was meant."""

import os

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Schema
from tfx.utils import io_utils


@component
def ImportSchemaGen(schema: OutputArtifact[Schema], text: Parameter[str], schema_file: Parameter[str]):
    """Writes the schema.

    Args:
        text: of a `schema.pbtxt`.
        schema_file: where it came from, for the lineage.
    """
    io_utils.write_string_file(os.path.join(schema.uri, "schema.pbtxt"), text)
