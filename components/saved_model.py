"""SavedModels as this project writes them."""

import os
from collections.abc import Mapping

import tensorflow as tf

# Nothing takes gradients of a saved model, and tracing them takes most of the time that a large network needs
# (`_trace_gradient_functions` in TensorFlow's save.py is quadratic).
_OPTIONS = tf.saved_model.SaveOptions(experimental_custom_gradients=False)


def save(module: tf.Module, path: str, signatures: Mapping[str, tf.types.experimental.PolymorphicFunction]) -> None:
    """Writes `module` as a SavedModel with `signatures` to the directory `path`."""
    tf.saved_model.save(module, path, signatures=signatures, options=_OPTIONS)


def size(path: str) -> int:
    """Bytes of all files below the directory `path`."""
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
