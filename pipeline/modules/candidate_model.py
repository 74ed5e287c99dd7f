"""The model of a candidate: Transform's graph and a head, which map embeddings to breed probabilities."""

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from components import saved_model
from components.json_files import write_json
from components.keras_config import keras
from serving.model_files import MODEL_RECORD_FILE


class CandidateModel(tf.Module):
    """Transform's graph and a head in one SavedModel of a few hundred kilobytes, without the backbone.

    BackboneSelector combines the model of the winner with its backbone.

    Signatures:
        classify_embedding: embedding float32 [n, d] -> probabilities float32 [n, breeds] and breeds string
            [n, breeds], in the same order.
        transform_labels: breed string [n] -> label int64 [n].

    Args:
        transform: Output of Transform.
        head: Trained head from `pipeline.modules.head.build_head`.
        breeds: Breeds in the order of the head's outputs.
    """

    def __init__(self, transform: tft.TFTransformOutput, head: keras.Model, breeds: list[str]):
        super().__init__()
        self._transform = transform.transform_features_layer()
        # Track the variables and not the Keras model, because exporting the model writes each variable twice.
        self._head_weights = [variable.value for variable in head.variables]
        self._breeds = tf.constant(breeds)

        # No autograph: there is no Python control flow to convert here, and autograph would convert the code of Keras.
        @tf.function(
            input_signature=[tf.TensorSpec([None, head.input_shape[-1]], tf.float32, "embedding")], autograph=False
        )
        def classify_embedding(embedding):
            # Transform's layer is a tf_keras model, which can only be called inside a tf.function.
            probabilities = head(self._transform({"embedding": embedding})["embedding"], training=False)
            names = tf.broadcast_to(self._breeds, tf.shape(probabilities))
            return {"probabilities": probabilities, "breeds": names}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")], autograph=False)
        def transform_labels(breed):
            return {"label": tf.reshape(self._transform({"breed": breed[:, tf.newaxis]})["label"], [-1])}

        self.endpoints = {"classify_embedding": classify_embedding, "transform_labels": transform_labels}

    def save(self, path: str, record: dict[str, Any]) -> None:
        """Write the SavedModel and its record (see `serving.model_files`)."""
        saved_model.save(self, path, self.endpoints)
        write_json(path, MODEL_RECORD_FILE, record)
