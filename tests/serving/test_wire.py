"""The messages on the wire are TensorFlow Serving's, and what is generated from them is current."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.wire import predict_pb2 as ours

ROOT = Path(__file__).parents[2]


def test_the_generated_module_is_current(tmp_path):
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        f"--python_out={tmp_path}",
        "serving/wire/predict.proto",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    generated = "serving/wire/predict_pb2.py"
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
    ],
)
def test_every_field_is_the_official_one(message, official):
    for name, field in message.DESCRIPTOR.fields_by_name.items():
        theirs = official.DESCRIPTOR.fields_by_name[name]
        assert (field.number, field.type, field.is_repeated) == (theirs.number, theirs.type, theirs.is_repeated)
    assert set(ours.DataType.items()) <= set(types_pb2.DataType.items())
