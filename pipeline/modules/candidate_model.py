"""A candidate's model: Transform's graph and the head, from an embedding to the probabilities of breeds."""

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from components import saved_model
from components.json_files import write_json
from components.pinned_keras import keras
from serving.model_files import MODEL_RECORD_FILE


class CandidateModel(tf.Module):
    """Transform's graph and head in one, some hundred kilobytes; BackboneSelector joins the winner's with its backbone.

    Signatures:
        classify_embedding: embedding float32 [n, d] -> probabilities float32 [n, breeds] and breeds string
            [n, breeds], in the same order.
        transform_labels: breed string [n] -> label int64 [n].

    Args:
        transform: output of Transform.
        head: see `pipeline.modules.head.build_head`.
        breeds: names in the order of the head's outputs.
    """

    def __init__(self, transform: tft.TFTransformOutput, head: keras.Model, breeds: list[str]):
        super().__init__()
        self._transform = transform.transform_features_layer()
        # The variables, not the Keras model: Keras's own exports write each of them twice.
        self._head_weights = [variable.value for variable in head.variables]
        self._breeds = tf.constant(breeds)

        # Without autograph, which would convert the code of Keras; nothing here branches.
        @tf.function(
            input_signature=[tf.TensorSpec([None, head.input_shape[-1]], tf.float32, "embedding")], autograph=False
        )
        def classify_embedding(embedding):
            # Transform's layer is a tf_keras model: it may only be called inside a tf.function.
            probabilities = head(self._transform({"embedding": embedding})["embedding"], training=False)
            names = tf.broadcast_to(self._breeds, tf.shape(probabilities))
            return {"probabilities": probabilities, "breeds": names}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")], autograph=False)
        def transform_labels(breed):
            return {"label": tf.reshape(self._transform({"breed": breed[:, tf.newaxis]})["label"], [-1])}

        self.endpoints = {"classify_embedding": classify_embedding, "transform_labels": transform_labels}

    def save(self, path: str, record: dict[str, Any]) -> None:
        """Writes the SavedModel and `record`, what it is made of."""
        saved_model.save(self, path, self.endpoints)
        write_json(path, MODEL_RECORD_FILE, record)
