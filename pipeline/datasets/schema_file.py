"""The file that says what photos must look like: schema.pbtxt, a Schema of TensorFlow Metadata."""

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

SCHEMA_FILE = "schema.pbtxt"


def read_schema(path: Path) -> schema_pb2.Schema:
    """The schema in a file.

    Raises:
        ValueError: the file is no schema of photos; the message says why.
        OSError: it cannot be read.
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
            raise ValueError(f"feature {feature.name} has the domain {feature.domain!r}, which is not there")
    return schema
