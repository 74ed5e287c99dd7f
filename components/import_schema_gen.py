"""ImportSchemaGen that notices when the schema file changes; TFX's own caches by the file's name alone."""

from typing import ClassVar

from tfx.components.schema_gen.import_schema_gen import component as stock
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.types import Channel
from tfx.types.component_spec import ExecutionParameter
from tfx.types.standard_artifacts import Schema
from tfx.types.standard_component_specs import ImportSchemaGenSpec

from components.provenance import file_digest


class _Spec(ImportSchemaGenSpec):
    PARAMETERS: ClassVar = {**ImportSchemaGenSpec.PARAMETERS, "digest": ExecutionParameter(type=str)}


class ImportSchemaGen(stock.ImportSchemaGen):
    """Brings the reviewed schema file into the pipeline.

    Args:
        schema_file: path of a `schema.pbtxt`.
    """

    SPEC_CLASS = _Spec

    def __init__(self, schema_file: str):
        schema = Channel(type=Schema)
        spec = _Spec(schema_file=schema_file, digest=file_digest(schema_file), schema=schema)
        BaseComponent.__init__(self, spec=spec)
