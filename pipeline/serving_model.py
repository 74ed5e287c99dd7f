"""The model that is pushed: one SavedModel from the bytes of a photo to the probabilities of breeds."""

import os

import keras
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from components.documents import write_json
from serving.model_record import RECORD_FILE

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


class ServingModel(tf.Module):
    """Backbone, Transform's graph and head in one; each variable is written once.

    Signatures:
        serving_default: image_bytes string [n] (JPEG or PNG of any size) -> probabilities float32 [n, breeds] and
            breeds string [n, breeds], in the same order.
        top_k: image_bytes -> breeds string [n, k], probabilities float32 [n, k], most probable first.
        classify_embedding: embedding float32 [n, d] -> as serving_default. For the Evaluator.
        transform_labels: breed string [n] -> label int64 [n]. For the Evaluator.

    Args:
        backbone: directory of the backbone's SavedModel.
        transform: output of Transform.
        head: see `pipeline.head.build_head`.
        breeds: names in the order of the head's outputs.
        top_k: number of breeds that `top_k` answers.
    """

    def __init__(
        self, backbone: str, transform: tft.TFTransformOutput, head: keras.Model, breeds: list[str], top_k: int
    ):
        super().__init__()
        self._backbone = tf.saved_model.load(backbone)
        self._transform = transform.transform_features_layer()
        # The variables, not the Keras model: Keras's own exports write each of them twice.
        self._head_weights = [variable.value for variable in head.variables]
        self._breeds = tf.constant(breeds)
        embedding_size = head.input_shape[-1]

        def classify(embedding):
            # Transform's layer is a tf_keras model: it may only be called inside a tf.function.
            probabilities = head(self._transform({"embedding": embedding})["embedding"], training=False)
            names = tf.broadcast_to(self._breeds, tf.shape(probabilities))
            return {"probabilities": probabilities, "breeds": names}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
        def serve(image_bytes):
            return classify(self._backbone.signatures["serving_default"](image_bytes=image_bytes)["embedding"])

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
        def serve_top_k(image_bytes):
            probabilities = serve(image_bytes)["probabilities"]
            values, indices = tf.math.top_k(probabilities, k=min(top_k, len(breeds)))
            return {"probabilities": values, "breeds": tf.gather(self._breeds, indices)}

        @tf.function(input_signature=[tf.TensorSpec([None, embedding_size], tf.float32, "embedding")])
        def classify_embedding(embedding):
            return classify(embedding)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")])
        def transform_labels(breed):
            return {"label": tf.reshape(self._transform({"breed": breed[:, tf.newaxis]})["label"], [-1])}

        self.endpoints = {
            "serving_default": serve,
            "top_k": serve_top_k,
            "classify_embedding": classify_embedding,
            "transform_labels": transform_labels,
        }

    def save(self, path: str, record: dict, model_name: str) -> None:
        """Writes the SavedModel, `record` (what it is made of) and warmup requests for TF Serving."""
        tf.saved_model.save(self, path, signatures=self.endpoints)
        write_json(path, RECORD_FILE, record)
        with tf.io.TFRecordWriter(os.path.join(path, WARMUP_FILE)) as writer:
            for signature in ("serving_default", "top_k"):
                writer.write(_warmup_request(model_name, signature).SerializeToString())


def _warmup_request(model_name: str, signature: str) -> prediction_log_pb2.PredictionLog:
    grey = tf.io.encode_jpeg(tf.fill([256, 256, 3], tf.constant(128, tf.uint8)))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([grey.numpy()]))
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
