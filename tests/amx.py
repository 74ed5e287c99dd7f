"""A computation whose result depends on the precision, and helpers for tests that need a CPU with AMX."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from serving.precision import has_amx

needs_amx = pytest.mark.skipif(not has_amx(), reason="needs a CPU with AMX")

_CHANNELS = 64
# 1 + 2**-10 is 1 in bfloat16.
_INPUT = 1 + 2**-10
SUM = {"float32": _CHANNELS * _INPUT, "bfloat16": float(_CHANNELS)}


def rounded_sums(count: tf.Tensor) -> tf.Tensor:
    """Return float32 [count], each the SUM of the precision, computed by a convolution."""
    return tf.nn.conv2d(tf.fill([count, 8, 8, _CHANNELS], _INPUT), tf.ones([1, 1, _CHANNELS, 1]), 1, "SAME")[:, 0, 0, 0]


class RoundingModel(tf.Module):
    """A model that predicts the breed "float32" or "bfloat16": the precision in which it is computed."""

    BREEDS = ("bfloat16", "float32")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes):
        """image_bytes string [n] -> probabilities float32 [n, 2] and breeds string [n, 2]."""
        is_float32 = tf.where(rounded_sums(tf.size(image_bytes)) == SUM["float32"], 0.9, 0.2)
        probabilities = tf.stack([1 - is_float32, is_float32], axis=1)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(self.BREEDS, tf.shape(probabilities))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")])
    def transform_labels(self, breed):
        """Breed string [n] -> label int64 [n]."""
        return {"label": tf.cast(breed == self.BREEDS[1], tf.int64)}

    def save(self, path: str | Path) -> None:
        """Write the SavedModel."""
        signatures = {"serving_default": self.classify, "transform_labels": self.transform_labels}
        tf.saved_model.save(self, str(path), signatures=signatures)


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a new process: TensorFlow reads the precision once, at the first convolution."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
