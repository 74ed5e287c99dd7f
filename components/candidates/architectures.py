"""Backbone architectures. To add one, add an entry to ARCHITECTURES and its key to `backbones` in a profile."""

from typing import NamedTuple

WEIGHTS_HOST = "https://storage.googleapis.com"  # Keras downloads ImageNet weights from here
ENSEMBLE = "ensemble"  # name of the candidate that uses all backbones
MAX_CANDIDATES = 8  # of one run; the components that read all candidates declare this many of each input channel


class Architecture(NamedTuple):
    """Description of one architecture of `keras.applications`.

    Attributes:
        module: Submodule of `keras.applications` with the builder and its `preprocess_input`.
        builder: Name of the function that builds the network.
        keras_weights: File name that Keras gives to the ImageNet weights without top.
        min_size: Smallest accepted image side in pixels.
        licence: Licence of the ImageNet weights.
        layers: Layers whose outputs are the outputs of the last blocks, in the order of the forward pass.
            `<layer>:input` is the input of a layer, for outputs of layers that Keras names with a counter.
    """

    module: str
    builder: str
    keras_weights: str
    min_size: int
    licence: str
    layers: tuple[str, ...]


ARCHITECTURES = {
    "xception": Architecture(
        module="xception",
        builder="Xception",
        keras_weights="xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
        min_size=71,
        licence="MIT",
        layers=("block13_sepconv1_act:input", "block14_sepconv1:input", "block14_sepconv2_act"),
    ),
    "resnet50": Architecture(
        module="resnet50",
        builder="ResNet50",
        keras_weights="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        min_size=32,
        licence="MIT",
        layers=("conv5_block1_out", "conv5_block2_out", "conv5_block3_out"),
    ),
    "efficientnetb7": Architecture(
        module="efficientnet",
        builder="EfficientNetB7",
        keras_weights="efficientnetb7_notop.h5",
        min_size=32,
        licence="Apache-2.0",
        layers=("block7c_add", "block7d_add", "top_activation"),
    ),
}


def weight_file_names(backbone: str) -> tuple[str, str]:
    """Accepted file names of the weights of `backbone` in a weights directory, preferred name first."""
    return f"{backbone}_notop.weights.h5", ARCHITECTURES[backbone].keras_weights


def weights_licence(architecture: str, weights: str) -> str:
    """Licence of the weights of a built-in backbone, as a phrase.

    Args:
        architecture: Key of ARCHITECTURES.
        weights: "imagenet" or "random".
    """
    if weights == "random":
        return "none: the weights are random"
    return (
        f"{ARCHITECTURES[architecture].licence}, as published with Keras; trained on ImageNet (ILSVRC 2012), whose "
        "images are for non-commercial research"
    )
