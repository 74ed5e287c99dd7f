"""ImportSchemaGen: passes the reviewed schema to the pipeline as text, so that each run uses exactly this schema."""

import os

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Schema
from tfx.utils import io_utils


@component
def ImportSchemaGen(schema: OutputArtifact[Schema], text: Parameter[str], schema_file: Parameter[str]):
    """Write the schema.

    Args:
        text: Text of a `schema.pbtxt` file.
        schema_file: Path of that file, recorded for the lineage.
    """
    io_utils.write_string_file(os.path.join(schema.uri, "schema.pbtxt"), text)
