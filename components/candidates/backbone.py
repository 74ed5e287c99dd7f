"""Backbone component: a pretrained network in a SavedModel that maps the bytes of photos to embeddings."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from unittest import mock

import tensorflow as tf
from keras.src.utils import file_utils
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types.standard_artifacts import Model
from tfx.utils import path_utils

from components import saved_model
from components.candidates.architectures import ARCHITECTURES, WEIGHTS_HOST, weight_file_names, weights_licence
from components.candidates.embedding_features import feature_name
from components.candidates.model_file import check_model_file
from components.candidates.multiply_adds import multiply_adds
from components.digests import file_digest
from components.errors import WeightsError
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import write_json
from components.keras_config import keras
from components.local_copies import local_copy
from serving import proxies


def find_weights(backbone: str, weights_dir: str) -> str:
    """Return the path of the ImageNet weights of `backbone` in `weights_dir`.

    Raises:
        WeightsError: If `weights_dir` has no weights file for `backbone`.
    """
    names = weight_file_names(backbone)
    for name in names:
        if fileio.exists(os.path.join(weights_dir, name)):
            return os.path.join(weights_dir, name)
    raise WeightsError(f"{weights_dir}: no weights for {backbone}; add {' or '.join(names)}")


def weights_source(backbone: str, weights: str, weights_dir: str) -> str:
    """Return the `weights` argument of `build_network`: a file in `weights_dir`, or `weights` if `weights_dir` is "".

    Raises:
        WeightsError: If `weights_dir` has no weights for `backbone`, or is set although `weights` is "random".
    """
    if not weights_dir:
        return weights
    if weights == "random":
        raise WeightsError(f"weights_dir={weights_dir}: not used with weights=random; leave weights_dir empty")
    return find_weights(backbone, weights_dir)


def build_network(architecture: str, weights: str, image_size: int, seed: int) -> keras.Model:
    """Build the network without its classification top.

    The network maps preprocessed pixels, float32 [n, image_size, image_size, 3], to a feature map, float32
    [n, height, width, d].

    Args:
        architecture: Key of ARCHITECTURES.
        weights: "imagenet" (Keras downloads the weights once), "random", or the path of a weights file.
        image_size: Side of the input image in pixels.
        seed: Seed for the random weights.

    Raises:
        WeightsError: If the weights cannot be downloaded or do not fit the architecture.
    """
    spec = ARCHITECTURES[architecture]
    builder = getattr(_keras_module(architecture), spec.builder)
    keras.utils.set_random_seed(seed)
    shape = (image_size, image_size, 3)
    if weights == "random":
        return builder(weights=None, include_top=False, input_shape=shape)
    if weights == "imagenet":
        try:
            return builder(weights="imagenet", include_top=False, input_shape=shape)
        except Exception as error:
            # Keras raises a bare Exception when a download fails.
            if "URL fetch failure" not in str(error):
                raise
            raise WeightsError(
                f"the ImageNet weights of {architecture} are not on this machine and cannot be downloaded"
                f"{proxies.through(WEIGHTS_HOST)} ({error}). "
                f"Copy {' or '.join(weight_file_names(architecture))} to a folder and pass --set weights_dir=FOLDER"
            ) from None
    # Pretend that Keras downloaded the file: only with weights="imagenet" does it add the rescaling layer of
    # EfficientNet.
    with mock.patch.object(file_utils, "get_file", return_value=weights):
        try:
            return builder(weights="imagenet", include_top=False, input_shape=shape)
        except (ValueError, OSError) as error:
            raise WeightsError(f"{weights}: not a weights file of {architecture} without top: {error}") from None


def load_network(backbone: str, path: str, image_size: int, layers: Sequence[str]) -> keras.Model:
    """Load a network from a `.keras` file. Keras's safe mode does not run code from the file.

    Args:
        backbone: Name of the backbone, for messages.
        path: Path of the file.
        image_size: Side of the input image in pixels.
        layers: Layers whose outputs are the outputs of the last blocks; if empty, only the output of the model.

    Raises:
        WeightsError: If the file cannot be loaded, or the model cannot be a backbone.
    """
    check_model_file(backbone, path, image_size, layers)
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise WeightsError(f"backbones: {backbone}: model: {path}: Keras cannot load it: {reason}") from None


def decode_photos(image_bytes: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decode photos to a fixed size: string [n] (JPEG or PNG of any size) -> float32 [n, image_size, image_size, 3].

    Values are in 0..255. The central square, cropped to 7/8 of its side, is resized with antialiasing, as in the
    evaluation of ImageNet networks. Stretching the photo instead costs a linear probe on Xception several points of
    accuracy (84 photos of 12 breeds).
    """
    shape = [image_size, image_size, 3]

    def decode_one(image):
        pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
        pixels.set_shape([None, None, 3])
        side = tf.reduce_min(tf.shape(pixels)[:2]) * 7 // 8
        square = tf.image.resize_with_crop_or_pad(pixels, side, side)
        return tf.image.resize(square, [image_size, image_size], antialias=True)

    return tf.map_fn(decode_one, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def pool_blocks(network: keras.Model, name: str, layers: Sequence[str]) -> keras.Model:
    """Return the model that maps the input of `network` to its pooled blocks, one float32 [n, d] for each.

    The outputs have the names of `components.candidates.embedding_features`.

    Args:
        network: Result of `build_network` or `load_network`.
        name: Name of the backbone.
        layers: Layers whose outputs are the outputs of the last blocks, in the order of the forward pass, as in
            `Architecture`; if empty, only the output of the network.

    Raises:
        WeightsError: If the output of a block is not a feature map, tokens or a vector.
    """
    blocks = [_layer_output(network, layer) for layer in reversed(layers)] or network.outputs
    outputs = {feature_name(name, depth): _pool(name, block) for depth, block in enumerate(blocks)}
    return keras.Model(network.inputs, outputs)


def build_embedder(blocks: keras.Model, preprocess: Callable[[tf.Tensor], tf.Tensor], image_size: int) -> tf.Module:
    """Return a module with the function `embed`: image_bytes string [n] -> the outputs of `blocks`.

    The module tracks the variables and not the Keras model, because exporting the model writes each variable twice.

    Args:
        blocks: Result of `pool_blocks`.
        preprocess: Function from pixels, float32 [n, image_size, image_size, 3] in 0..255, to the input of `blocks`.
        image_size: Side of the input image in pixels.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in blocks.variables]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def embed(image_bytes):
        return blocks(preprocess(decode_photos(image_bytes, image_size)), training=False)

    module.embed = embed
    return module


def preprocessing(architecture: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Function from pixels in 0..255 to the input of a network of `build_network`."""
    return _keras_module(architecture).preprocess_input


def _operations(network: keras.Model) -> list[keras.Operation]:
    """Layers and other operations, in the order of the forward pass."""
    return getattr(network, "operations", network.layers)  # a sequential model has only layers


def _layer_output(network: keras.Model, layer: str) -> keras.KerasTensor:
    """Output of a layer, or with `<layer>:input` the input of a layer."""
    name = layer.removesuffix(":input")
    operation = next(operation for operation in _operations(network) if operation.name == name)
    return operation.output if name == layer else operation.input


def _pool(backbone: str, block: keras.KerasTensor) -> keras.KerasTensor:
    """Average over positions: a feature map [n, height, width, d], tokens [n, t, d] or a vector [n, d] to [n, d]."""
    if len(block.shape) not in (2, 3, 4) or block.shape[-1] is None:
        raise WeightsError(
            f"backbones: {backbone}: layers: the output of {block.name} has the shape {block.shape}; it must be a "
            "feature map (n, height, width, d), tokens (n, t, d) or a vector (n, d)"
        )
    values = keras.ops.cast(block, "float32")
    positions = tuple(range(1, len(block.shape) - 1))
    return keras.ops.mean(values, axis=positions) if positions else values


@component
def Backbone(
    model: OutputArtifact[Model],
    name: Parameter[str],
    architecture: Parameter[str],
    weights: Parameter[str],
    weights_dir: Parameter[str],
    weights_digest: Parameter[str],
    model_file: Parameter[str],
    layers: Parameter[str],
    licence: Parameter[str],
    image_size: Parameter[int],
    precision: Parameter[str],
    seed: Parameter[int],
    code_digest: Parameter[str],
):
    """Write the SavedModel of a backbone and its record, `backbone.json`.

    Signature: `serving_default`, image_bytes string [n] -> one embedding float32 [n, d] for each of the last blocks.

    Args:
        model: SavedModel and record of the backbone.
        name: Name of the backbone.
        architecture: Key of ARCHITECTURES, or `name` if the network comes from a file.
        weights: "imagenet", "random", or "file" if the network comes from `model_file`.
        weights_dir: Folder with the ImageNet weights; if "", Keras downloads them.
        weights_digest: Digest of the file with the weights or the model; a new digest reruns the component.
        model_file: Path of a `.keras` file, or "".
        layers: JSON list of layers, as in `load_network`, if the network comes from a file.
        licence: Licence of the weights, if the network comes from a file.
        image_size: Side of the input image in pixels.
        precision: Precision in which a CPU computes the backbone; see `serving.precision`. It is recorded.
        seed: Seed for the random weights.
        code_digest: Digest of the modules that the component runs.

    Raises:
        WeightsError: If the weights are missing, cannot be downloaded, or do not fit the architecture, or if the file
            cannot be a backbone.
    """
    if weights == "file":
        used_layers = json.loads(layers)
        network = load_network(name, model_file, image_size, used_layers)
        preprocess, digest = (lambda pixels: pixels), file_digest(model_file)
    else:
        used_layers, licence = ARCHITECTURES[architecture].layers, weights_licence(architecture, weights)
        with local_copy(weights_source(architecture, weights, weights_dir)) as source:
            network = build_network(architecture, source, image_size, seed)
        preprocess, digest = preprocessing(architecture), _weights_digest(network)
    blocks = pool_blocks(network, name, used_layers)
    module = build_embedder(blocks, preprocess, image_size)
    path = path_utils.serving_model_dir(model.uri)
    saved_model.save(module, path, {"serving_default": module.embed})
    traced = module.embed.get_concrete_function()
    record = {
        "name": name,
        "architecture": architecture,
        "weights": weights,
        "weights_digest": digest,
        "licence": licence,
        "image_size": image_size,
        "precision": precision,
        "layers": list(used_layers) or [_operations(network)[-1].name],
        "embedding_sizes": {feature: spec.shape[-1] for feature, spec in traced.structured_outputs.items()},
        "parameters": blocks.count_params(),
        "multiply_adds": multiply_adds(blocks, image_size, traced.graph),
    }
    write_json(path, BACKBONE_RECORD_FILE, record)
    model.set_string_custom_property("name", name)
    model.set_string_custom_property("architecture", architecture)
    model.set_string_custom_property("weights_digest", digest)


def _weights_digest(network: keras.Model) -> str:
    """SHA-256 of the weight values, which is the same for downloaded weights and for weights from a file."""
    digest = hashlib.sha256()
    for variable in network.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _keras_module(architecture: str):
    return importlib.import_module(f"keras.applications.{ARCHITECTURES[architecture].module}")
