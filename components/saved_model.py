"""Functions that write and measure SavedModels."""

import os
from collections.abc import Mapping

import tensorflow as tf


def save(
    module: tf.Module,
    path: str,
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction],
    for_tensorflow_serving: bool = False,
) -> None:
    """Write `module` as a SavedModel.

    Args:
        module: Module to save.
        path: Directory of the SavedModel.
        signatures: Signature name -> function.
        for_tensorflow_serving: Whether TensorFlow Serving must be able to load it, not only `tf.saved_model.load`.
    """
    options = tf.saved_model.SaveOptions(
        # Saved models are not trained further, and tracing gradients takes most of the time to save a large network:
        # `_trace_gradient_functions` in TensorFlow's save.py takes quadratic time.
        experimental_custom_gradients=False,
        # The saver adds two operations for each variable, which TensorFlow Serving needs to restore it in a session.
        # They double the time to load a large network.
        experimental_skip_saver=not for_tensorflow_serving,
    )
    tf.saved_model.save(module, path, signatures=signatures, options=options)


def size(path: str) -> int:
    """Total size in bytes of all files in the directory `path`, at any depth."""
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
