"""Backbone: a pretrained network with everything between a photo's bytes and its embedding, as one SavedModel."""

import hashlib
import importlib
import os
from unittest import mock

import tensorflow as tf
from keras.src.utils import file_utils
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types.standard_artifacts import Model
from tfx.utils import path_utils

from components import saved_model
from components.candidates.architectures import ARCHITECTURES, WEIGHTS_HOST, weight_file_names
from components.errors import WeightsError
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import write_json
from components.local_copies import local_copy
from components.pinned_keras import keras
from serving import proxies


def find_weights(backbone: str, weights_dir: str) -> str:
    """Path of the ImageNet weights of `backbone` in `weights_dir`.

    Raises:
        WeightsError: there is none, under our name or Keras's.
    """
    names = weight_file_names(backbone)
    for name in names:
        if fileio.exists(os.path.join(weights_dir, name)):
            return os.path.join(weights_dir, name)
    raise WeightsError(f"{weights_dir}: has no weights for {backbone}; it needs {' or '.join(names)}")


def weights_source(backbone: str, weights: str, weights_dir: str) -> str:
    """What `build_network` takes as `weights`: the file in `weights_dir`, if that is not "", else `weights` itself.

    Raises:
        WeightsError: `weights_dir` has no weights for `backbone`, or is given though they shall be random.
    """
    if not weights_dir:
        return weights
    if weights == "random":
        raise WeightsError(f"weights_dir={weights_dir}: holds ImageNet weights, but weights=random; leave it empty")
    return find_weights(backbone, weights_dir)


def build_network(architecture: str, weights: str, image_size: int, seed: int) -> keras.Model:
    """The network without its top, preprocessed float32 [n, image_size, image_size, 3] -> pooled float32 [n, d].

    Args:
        architecture: a key of ARCHITECTURES.
        weights: "imagenet" (Keras downloads them once), "random", or the path of a weights file.
        image_size: pixels.
        seed: of random weights.

    Raises:
        WeightsError: the weights cannot be downloaded or do not fit the architecture.
    """
    spec = ARCHITECTURES[architecture]
    builder = getattr(_module(architecture), spec.builder)
    keras.utils.set_random_seed(seed)
    shape = (image_size, image_size, 3)
    if weights == "random":
        return builder(weights=None, include_top=False, pooling="avg", input_shape=shape)
    if weights == "imagenet":
        try:
            return builder(weights="imagenet", include_top=False, pooling="avg", input_shape=shape)
        except Exception as error:
            # Keras raises a bare Exception when a download fails.
            if "URL fetch failure" not in str(error):
                raise
            raise WeightsError(
                f"the ImageNet weights of {architecture} are not on this machine and cannot be downloaded"
                f"{proxies.through(WEIGHTS_HOST)} ({error}). "
                f"Bring {' or '.join(weight_file_names(architecture))} in a folder and say --set weights_dir=FOLDER"
            ) from None
    # As if Keras had downloaded the file: for its own weights alone it adds the rescaling that EfficientNet needs.
    with mock.patch.object(file_utils, "get_file", return_value=weights):
        try:
            return builder(weights="imagenet", include_top=False, pooling="avg", input_shape=shape)
        except (ValueError, OSError) as error:
            raise WeightsError(f"{weights}: not the weights of {architecture} without top: {error}") from None


def decode_photos(image_bytes: tf.Tensor, image_size: int) -> tf.Tensor:
    """String [n] of JPEG or PNG of any size -> float32 [n, image_size, image_size, 3] in 0..255.

    The central square, less an eighth at its border, is resized with antialias: the view by which ImageNet networks
    are evaluated. A stretched photo costs a linear probe on Xception several points (84 photos of 12 breeds).
    """

    def decode(data):
        pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
        pixels.set_shape([None, None, 3])
        side = tf.reduce_min(tf.shape(pixels)[:2]) * 7 // 8
        square = tf.image.resize_with_crop_or_pad(pixels, side, side)
        return tf.image.resize(square, [image_size, image_size], antialias=True)

    return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec([image_size, image_size, 3], tf.float32))


def embedder(network: keras.Model, architecture: str, image_size: int) -> tf.Module:
    """A module with `embed`: string [n] `image_bytes` -> {"embedding": float32 [n, d]}.

    It holds the variables, not the Keras model: Keras's own exports write each variable twice.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    preprocess = _module(architecture).preprocess_input

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def embed(image_bytes):
        return {"embedding": network(preprocess(decode_photos(image_bytes, image_size)), training=False)}

    module.embed = embed
    return module


@component
def Backbone(
    model: OutputArtifact[Model],
    architecture: Parameter[str],
    weights: Parameter[str],
    weights_dir: Parameter[str],
    weights_digest: Parameter[str],
    image_size: Parameter[int],
    seed: Parameter[int],
    code_digest: Parameter[str],
):
    """Writes the backbone's SavedModel (signature serving_default: image_bytes -> embedding) and what it is made of.

    Args:
        architecture: a key of ARCHITECTURES.
        weights: "imagenet" or "random".
        weights_dir: folder with the ImageNet weights; "": Keras downloads them.
        weights_digest: of the file there; a new one re-runs the component.
        image_size: pixels.
        seed: of random weights.
        code_digest: of the modules that it runs.

    Raises:
        WeightsError: see `find_weights` and `build_network`.
    """
    source = weights_source(architecture, weights, weights_dir)
    with local_copy(source) as source:
        network = build_network(architecture, source, image_size, seed)
    module = embedder(network, architecture, image_size)
    path = path_utils.serving_model_dir(model.uri)
    saved_model.save(module, path, {"serving_default": module.embed})
    record = {
        "architecture": architecture,
        "weights": weights,
        "weights_digest": _values_digest(network),
        "image_size": image_size,
        "embedding_size": network.output_shape[-1],
        "parameters": network.count_params(),
    }
    write_json(path, BACKBONE_RECORD_FILE, record)
    model.set_string_custom_property("architecture", architecture)
    model.set_string_custom_property("weights_digest", record["weights_digest"])


def _values_digest(network: keras.Model) -> str:
    """Of the values themselves: the same weights from a download and from a file are the same."""
    digest = hashlib.sha256()
    for variable in network.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _module(architecture: str):
    return importlib.import_module(f"keras.applications.{ARCHITECTURES[architecture].module}")
