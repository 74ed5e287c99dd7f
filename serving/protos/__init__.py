"""TensorFlow Serving's Predict on the wire, without TensorFlow: `predict.proto` and what protoc makes of it."""

from serving.protos.predict_pb2 import DataType, ModelSpec, PredictRequest, PredictResponse, TensorProto

PREDICT = "/tensorflow.serving.PredictionService/Predict"

__all__ = ["PREDICT", "DataType", "ModelSpec", "PredictRequest", "PredictResponse", "TensorProto"]
