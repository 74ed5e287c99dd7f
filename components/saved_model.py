"""SavedModels as this project writes them."""

import os
from collections.abc import Mapping

import tensorflow as tf


def save(
    module: tf.Module,
    path: str,
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction],
    for_servers: bool = False,
) -> None:
    """Writes `module` as a SavedModel with `signatures` to the directory `path`.

    Args:
        module: what to write.
        path: directory.
        signatures: name -> function.
        for_servers: TensorFlow Serving can load it, too, not only `tf.saved_model.load`.
    """
    options = tf.saved_model.SaveOptions(
        # Nothing takes gradients of a saved model, and tracing them takes most of the time that a large network needs
        # (`_trace_gradient_functions` in TensorFlow's save.py is quadratic).
        experimental_custom_gradients=False,
        # Two operations a variable that restore it in a session; they double the time to load a large network.
        experimental_skip_saver=not for_servers,
    )
    tf.saved_model.save(module, path, signatures=signatures, options=options)


def size(path: str) -> int:
    """Bytes of all files below the directory `path`."""
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
