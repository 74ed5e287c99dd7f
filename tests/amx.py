"""A computation whose result depends on the precision, and a marker for tests that need a CPU with AMX."""

import pytest
import tensorflow as tf

from serving.precision import has_amx

needs_amx = pytest.mark.skipif(not has_amx(), reason="needs a CPU with AMX")

# 1 + 2**-10 is 1 in bfloat16.
ROUNDED = 1 + 2**-10
_SIZE = 64
SUM = {"float32": _SIZE * ROUNDED, "bfloat16": float(_SIZE)}


def product(values: tf.Tensor) -> tf.Tensor:
    """float32 [n] -> float32 [n], the values multiplied by SUM / ROUNDED; the values are rounded to the precision."""
    return tf.reshape(tf.tile(values[:, tf.newaxis], [1, _SIZE]) @ tf.ones([_SIZE, _SIZE]), [-1, _SIZE])[:, 0]
