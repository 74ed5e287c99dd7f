"""Protocol buffer messages of TensorFlow Serving's gRPC API, compiled so that they do not require TensorFlow."""

from serving.protos.predict_pb2 import DataType, ModelSpec, PredictRequest, PredictResponse, TensorProto

PREDICT = "/tensorflow.serving.PredictionService/Predict"

__all__ = ["PREDICT", "DataType", "ModelSpec", "PredictRequest", "PredictResponse", "TensorProto"]
