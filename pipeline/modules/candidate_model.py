"""The model of a candidate: Transform's graph and a head, which map embeddings to breed probabilities."""

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from components import saved_model
from components.candidates.embedding_features import embedding_features
from components.candidates.served_model import embedding_specs
from components.json_files import write_json
from components.keras_config import keras
from pipeline.modules.explanation import Explainer
from serving.model_files import MODEL_RECORD_FILE


class CandidateModel(tf.Module):
    """Transform's graph and a head in one SavedModel of a few hundred kilobytes, without the backbone.

    BackboneSelector combines the model of the winner with its backbone.

    Signatures:
        classify_embedding: one input float32 [n, d] for each embedding -> probabilities float32 [n, breeds] and
            breeds string [n, breeds], in the same order.
        explain_embedding: the same inputs -> the same outputs and those of `pipeline.modules.explanation.Explainer`.
        transform_labels: breed string [n] -> label int64 [n].

    Args:
        transform: Output of Transform.
        head: Trained head from `pipeline.modules.head.build_head`.
        embedding_sizes: Length of each embedding, by name.
        breeds: Breeds in the order of the head's outputs.
        explainer: Explainer of the head's predictions.
    """

    def __init__(
        self,
        transform: tft.TFTransformOutput,
        head: keras.Model,
        embedding_sizes: dict[str, int],
        breeds: list[str],
        explainer: Explainer,
    ):
        super().__init__()
        # Not Transform's layer: it is a Keras model, whose export traces the graph again.
        self._transform = tf.saved_model.load(transform.transform_savedmodel_dir)
        # Track the variables and not the Keras model, because exporting the model writes each variable twice.
        self._head_weights = [variable.value for variable in head.variables]
        self._breeds = tf.constant(breeds)
        self._explainer = explainer
        specs = embedding_specs(embedding_sizes)

        raw_features = transform.raw_feature_spec()

        def transform_features(features, photos):
            # The unused features of Transform's graph are empty; TensorFlow does not compute what depends on them.
            unused = {
                name: tf.zeros([photos, *feature.shape], feature.dtype)
                for name, feature in raw_features.items()
                if name not in features
            }
            return self._transform.transform_fn(features | unused)

        def standardize(embeddings):
            raw = dict(zip(embedding_sizes, embeddings, strict=True))
            features = transform_features(raw, tf.shape(embeddings[0])[0])
            return tf.concat([features[name] for name in embedding_features(features)], axis=1)

        def classify(standardized):
            probabilities = head(standardized, training=False)
            return {"probabilities": probabilities, "breeds": tf.broadcast_to(self._breeds, tf.shape(probabilities))}

        # No autograph: there is no Python control flow to convert here, and autograph would convert the code of Keras.
        @tf.function(input_signature=specs, autograph=False)
        def classify_embedding(*embeddings):
            return classify(standardize(embeddings))

        @tf.function(input_signature=specs, autograph=False)
        def explain_embedding(*embeddings):
            standardized = standardize(embeddings)
            outputs = classify(standardized)
            return outputs | explainer(standardized, outputs["probabilities"])

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")], autograph=False)
        def transform_labels(breed):
            features = transform_features({"breed": breed[:, tf.newaxis]}, tf.shape(breed)[0])
            return {"label": tf.reshape(features["label"], [-1])}

        self.endpoints = {
            "classify_embedding": classify_embedding,
            "explain_embedding": explain_embedding,
            "transform_labels": transform_labels,
        }

    def save(self, path: str, record: dict[str, Any]) -> None:
        """Write the SavedModel and its record (see `serving.model_files`)."""
        saved_model.save(self, path, self.endpoints)
        write_json(path, MODEL_RECORD_FILE, record)
