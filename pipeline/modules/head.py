"""The head that is trained on a backbone's embeddings, and the records it is trained on."""

import hashlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.pinned_keras import keras

# Photos in one pass when nothing is learned; at most 34 MB of embeddings.
EVALUATION_BATCH = 4096

# Steps are so short that Python's overhead would be most of their time; this makes an epoch few calls.
_STEPS_PER_CALL = 256


class Records(NamedTuple):
    """One split in memory, in the order of the photos' content hashes.

    Attributes:
        embeddings: float32 [n, d], standardised.
        labels: int64 [n].
        hashes: bytes, n of them.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    hashes: list[bytes]

    def digest(self) -> str:
        """SHA-256 of which photo has which label."""
        digest = hashlib.sha256()
        for content_hash, label in zip(self.hashes, self.labels, strict=True):
            digest.update(content_hash + b"\0%d\0" % label)
        return digest.hexdigest()


def read_records(file_patterns: list[str], transform: tft.TFTransformOutput) -> Records:
    """Reads transformed examples and sorts them, so that training does not depend on the order of Beam's shards."""
    spec = transform.transformed_feature_spec()
    files = sorted(path for pattern in file_patterns for path in tf.io.gfile.glob(pattern))
    batches = tf.data.TFRecordDataset(files, compression_type="GZIP").batch(1024)
    rows = [tf.io.parse_example(batch, spec) for batch in batches]
    column = {name: np.concatenate([row[name].numpy() for row in rows]) for name in spec}
    hashes = [value.ravel()[0] for value in column["content_hash"]]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    return Records(
        column["embedding"][order].astype(np.float32),
        column["label"].reshape(-1)[order],
        [hashes[i] for i in order],
    )


def build_head(
    embedding_size: int, breeds: int, hyperparameters: dict, dropout: keras.layers.Layer | None = None
) -> keras.Model:
    """A compiled classifier: float32 [n, embedding_size] -> probabilities float32 [n, breeds].

    Args:
        embedding_size: length of an embedding.
        breeds: number of classes.
        hyperparameters: `units` (0: linear), `dropout`, `learning_rate`, `weight_decay`.
        dropout: layer in place of Keras's Dropout at the rate `dropout`.
    """
    layers = [keras.Input([embedding_size]), dropout or keras.layers.Dropout(hyperparameters["dropout"])]
    if hyperparameters["units"]:
        layers.append(keras.layers.Dense(hyperparameters["units"], activation="relu"))
    # From zero, as in BiT (Kolesnikov et al., ECCV 2020): where photos are few, random weights are noise that stays.
    layers.append(keras.layers.Dense(breeds, activation="softmax", kernel_initializer="zeros"))
    head = keras.Sequential(layers)
    head.compile(
        keras.optimizers.AdamW(hyperparameters["learning_rate"], weight_decay=hyperparameters["weight_decay"]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # compiling takes longer than these heads train
        steps_per_execution=_STEPS_PER_CALL,
    )
    return head


def batches(records: Records, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
    """Batches (embeddings float32 [n, d], labels int64 [n]) for `fit`; shuffled anew in each epoch where given a seed.

    Leaner than Keras's own reading of arrays, whose set-up takes longer than an epoch of a head.
    """
    embeddings, labels = tf.constant(records.embeddings), tf.constant(records.labels)
    indices = tf.data.Dataset.range(len(records.labels))
    if seed is not None:
        indices = indices.shuffle(len(records.labels), seed)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return (
        indices.batch(batch_size)
        .map(lambda index: (tf.gather(embeddings, index), tf.gather(labels, index)))
        .with_options(options)
    )


def make_deterministic(seed: int) -> None:
    """The same inputs give the same model from here on; set before each search or training."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
