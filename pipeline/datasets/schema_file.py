"""Read schema.pbtxt, the TensorFlow Metadata schema that photos are validated against."""

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

SCHEMA_FILE = "schema.pbtxt"


def read_schema(path: Path) -> schema_pb2.Schema:
    """Read a schema file.

    Raises:
        ValueError: If the file is not a schema of photos.
        OSError: If the file cannot be read.
    """
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except text_format.ParseError as error:
        raise ValueError(f"line {error}") from None
    if not any(feature.name == "breed" for feature in schema.feature):
        raise ValueError("has no feature named breed")
    domains = {domain.name for domain in schema.string_domain}
    for feature in schema.feature:
        if feature.HasField("domain") and feature.domain not in domains:
            raise ValueError(f"feature {feature.name} has the domain {feature.domain!r}, which is not defined")
    return schema
