"""The messages are wire-compatible with TensorFlow Serving's, and the generated modules are up to date."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message_factory import GetMessageClass
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.protos import model_management_pb2 as management
from serving.protos import predict_pb2 as ours

ROOT = Path(__file__).parents[2]


def type_of(message, field: str):
    """Return the class of a message field whose module the package does not contain."""
    return GetMessageClass(message.DESCRIPTOR.fields_by_name[field].message_type)


POLICY = type_of(model_server_config_pb2.ModelConfig, "model_version_policy")
STATUS = type_of(model_management_pb2.ReloadConfigResponse, "status")


@pytest.mark.parametrize("name", ["predict", "model_management", "model_server_options"])
def test_generated_module_is_up_to_date(tmp_path, name):
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        f"--python_out={tmp_path}",
        f"serving/protos/{name}.proto",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    generated = f"serving/protos/{name}_pb2.py"
    assert (tmp_path / generated).read_text() == (ROOT / generated).read_text(), "run `make protos`"


@pytest.mark.parametrize(
    ("message", "official"),
    [
        (ours.TensorShapeProto, tensor_shape_pb2.TensorShapeProto),
        (ours.TensorShapeProto.Dim, tensor_shape_pb2.TensorShapeProto.Dim),
        (ours.TensorProto, tensor_pb2.TensorProto),
        (ours.ModelSpec, model_pb2.ModelSpec),
        (ours.PredictRequest, predict_pb2.PredictRequest),
        (ours.PredictResponse, predict_pb2.PredictResponse),
        (ours.GetModelMetadataRequest, get_model_metadata_pb2.GetModelMetadataRequest),
        (ours.GetModelMetadataResponse, get_model_metadata_pb2.GetModelMetadataResponse),
        (ours.SignatureDefMap, get_model_metadata_pb2.SignatureDefMap),
        (ours.SignatureDef, meta_graph_pb2.SignatureDef),
        (management.ModelServerConfig, model_server_config_pb2.ModelServerConfig),
        (management.ModelConfigList, model_server_config_pb2.ModelConfigList),
        (management.ModelConfig, model_server_config_pb2.ModelConfig),
        (management.ModelConfig.VersionLabelsEntry, model_server_config_pb2.ModelConfig.VersionLabelsEntry),
        (management.ServableVersionPolicy, POLICY),
        (management.ServableVersionPolicy.Specific, POLICY.Specific),
        (management.ReloadConfigRequest, model_management_pb2.ReloadConfigRequest),
        (management.ReloadConfigResponse, model_management_pb2.ReloadConfigResponse),
        (management.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
        (management.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
        (management.ModelVersionStatus, get_model_status_pb2.ModelVersionStatus),
        (management.Status, STATUS),
    ],
)
def test_every_field_matches_the_official_message(message, official):
    for name, field in message.DESCRIPTOR.fields_by_name.items():
        expected = official.DESCRIPTOR.fields_by_name[name]
        assert (field.number, field.type, field.is_repeated) == (expected.number, expected.type, expected.is_repeated)
    assert set(ours.DataType.items()) <= set(types_pb2.DataType.items())
