"""Protocol buffer messages of TensorFlow Serving's gRPC API, compiled so that they do not require TensorFlow."""

from serving.protos.predict_pb2 import (
    DataType,
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    ModelSpec,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
    TensorProto,
)

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"

__all__ = [
    "GET_MODEL_METADATA",
    "PREDICT",
    "DataType",
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "ModelSpec",
    "PredictRequest",
    "PredictResponse",
    "SignatureDefMap",
    "TensorProto",
]
