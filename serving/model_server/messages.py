"""Messages of TensorFlow Serving and gRPC that no installed package holds, and protobuf text files."""

from pathlib import Path
from typing import TypeVar

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
    text_format,
    wrappers_pb2,
)

_Message = TypeVar("_Message", bound=message.Message)


def _classes() -> dict[str, type[message.Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="model_server.proto", package="model_server", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    wrapped, repeated = ".google.protobuf.", descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    plain = {
        "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
        "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
        "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    }
    fields = {
        # tensorflow_serving/servables/tensorflow/session_bundle_config.proto
        "BatchingParameters": [
            ("max_batch_size", 1, wrapped + "Int64Value"),
            ("batch_timeout_micros", 2, wrapped + "Int64Value"),
            ("max_enqueued_batches", 3, wrapped + "Int64Value"),
            ("num_batch_threads", 4, wrapped + "Int64Value"),
            ("thread_pool_name", 5, wrapped + "StringValue"),
            ("allowed_batch_sizes", 6, "int64"),
            ("pad_variable_length_inputs", 7, "bool"),
        ],
        # tensorflow_serving/config/monitoring_config.proto
        "PrometheusConfig": [("enable", 1, "bool"), ("path", 2, "string")],
        "MonitoringConfig": [("prometheus_config", 1, ".model_server.PrometheusConfig")],
        # grpc/health/v1/health.proto; an enum is an int64 on the wire
        "HealthCheckRequest": [("service", 1, "string")],
        "HealthCheckResponse": [("status", 1, "int64")],
    }
    for name, members in fields.items():
        described = file.message_type.add(name=name)
        for field, number, type_ in members:
            added = described.field.add(name=field, number=number)
            if type_ in plain:
                added.type = plain[type_]
            else:
                added.type_name = type_
            if field == "allowed_batch_sizes":
                added.label = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"model_server.{name}")) for name in fields
    }


_CLASSES = _classes()
BatchingParameters = _CLASSES["BatchingParameters"]
MonitoringConfig = _CLASSES["MonitoringConfig"]
HealthCheckRequest = _CLASSES["HealthCheckRequest"]
HealthCheckResponse = _CLASSES["HealthCheckResponse"]


def read_text(path: str, kind: type[_Message]) -> _Message:
    """The message in a protobuf text file.

    Raises:
        ValueError: the file cannot be read, or is no such message.
    """
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), kind())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path}: {error}") from None
