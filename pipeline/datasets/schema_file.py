"""Read schema.pbtxt, the TensorFlow Metadata schema that photos are validated against."""

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.settings import ROOT

SCHEMA_FILE = "schema.pbtxt"
PROJECT_SCHEMA = ROOT / "schemas" / "photos" / SCHEMA_FILE
# Features of the examples that an earlier version did not write. Schemas from that time lack them, and TFDV reports a
# feature that the schema lacks as an anomaly.
_ADDED_FEATURES = ("near_duplicate_group",)


def read_schema(path: Path) -> schema_pb2.Schema:
    """Read a schema file. Features that an earlier version did not know are added from the project's schema.

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
    schema.MergeFrom(_missing_features(schema))
    return schema


def read_schema_text(path: Path) -> str:
    """Read the text of a schema file that `read_schema` accepts, with its comments, and add the same features."""
    text = path.read_text(encoding="utf-8")
    missing = _missing_features(text_format.Parse(text, schema_pb2.Schema()))
    return f"{text}\n{text_format.MessageToString(missing)}" if missing.feature else text


def _missing_features(schema: schema_pb2.Schema) -> schema_pb2.Schema:
    """Return a schema with only the features that `schema` lacks because an earlier version wrote it."""
    project_schema = text_format.Parse(PROJECT_SCHEMA.read_text(encoding="utf-8"), schema_pb2.Schema())
    names = set(_ADDED_FEATURES) - {feature.name for feature in schema.feature}
    return schema_pb2.Schema(feature=[feature for feature in project_schema.feature if feature.name in names])
