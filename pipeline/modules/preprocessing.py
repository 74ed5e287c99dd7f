"""Preprocessing module of Transform: standardizes embeddings and encodes breeds with statistics of the train split."""

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from components.candidates.embedding_features import embedding_features

VOCABULARY = "breeds"
_EPSILON = 1e-9  # avoids division by zero


def preprocessing_fn(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Convert the features of EmbeddingGen to the inputs of a head. Its graph is part of the served model.

    Args:
        inputs: Features `breed`, `content_hash` and `near_duplicate_group`, each string [n, 1], and the embeddings,
            each float32 [n, d].

    Returns:
        The embeddings, under the same names: each standardized on its own, float32 [n, d]; see `standardize`.
        label: Index of the breed in the vocabulary, int64 [n, 1]; -1 for a breed that is not in train.
        content_hash: Content hash of the photo, string [n, 1]; sort key of the training data.
        near_duplicate_group: ID of the photo's group of near-duplicates, string [n, 1].
    """
    embeddings = {name: inputs[name] for name in embedding_features(inputs)}
    return standardize(embeddings, _train_moments) | {
        "label": tft.compute_and_apply_vocabulary(inputs["breed"], vocab_filename=VOCABULARY),
        "content_hash": inputs["content_hash"],
        "near_duplicate_group": inputs["near_duplicate_group"],
    }


def standardize(
    embeddings: dict[str, tf.Tensor], moments: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
) -> dict[str, tf.Tensor]:
    """Normalize the length of each embedding, then center each dimension and divide by the mean standard deviation.

    The length of an embedding reflects the exposure of the photo more than its content (SimpleShot, Wang et al., 2019).
    All dimensions of an embedding share one standard deviation because a z-score per dimension amplifies dimensions
    that hardly vary. Compared with a z-score per dimension without length normalization, heads trained on 60 photos of
    12 breeds gain 3 points of accuracy on unseen photos (Xception, mean of 14 splits).

    Args:
        embeddings: Embeddings by name, each float32 [n, d].
        moments: Function from normalized embeddings, float32 [n, sum of the d], to the mean and the variance of each
            dimension over the photos of train, float32 [sum of the d].

    Returns:
        Standardized embeddings by name, each float32 [n, d].
    """
    normalized = {name: _normalize_length(embedding) for name, embedding in embeddings.items()}
    # One vector, because Transform analyzes each tensor separately.
    mean, variance = moments(tf.concat(list(normalized.values()), axis=1))
    sizes = [embedding.shape[1] for embedding in normalized.values()]
    return {
        name: (embedding - mean_of_part) / (tf.reduce_mean(tf.sqrt(variance_of_part)) + _EPSILON)
        for (name, embedding), mean_of_part, variance_of_part in zip(
            normalized.items(), tf.split(mean, sizes), tf.split(variance, sizes), strict=True
        )
    }


def _normalize_length(embedding: tf.Tensor) -> tf.Tensor:
    return embedding * tf.math.rsqrt(tf.reduce_mean(embedding**2, axis=1, keepdims=True) + _EPSILON)


def _train_moments(embedding: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each dimension over all photos, which Transform computes on train."""
    return tft.mean(embedding, reduce_instance_dims=False), tft.var(embedding, reduce_instance_dims=False)
