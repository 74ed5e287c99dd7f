"""Backbone architectures. To add one, add an entry to ARCHITECTURES and its key to `backbones` in a profile."""

from typing import NamedTuple

WEIGHTS_HOST = "https://storage.googleapis.com"  # Keras downloads ImageNet weights from here
MAX_CANDIDATES = 8  # of one run; the components that read all candidates declare this many of each input channel


class Architecture(NamedTuple):
    """Description of one architecture of `keras.applications`.

    Attributes:
        module: Submodule of `keras.applications` with the builder and its `preprocess_input`.
        builder: Name of the function that builds the network.
        keras_weights: File name that Keras gives to the ImageNet weights without top.
        min_size: Smallest accepted image side in pixels.
        licence: Licence of the ImageNet weights.
    """

    module: str
    builder: str
    keras_weights: str
    min_size: int
    licence: str


ARCHITECTURES = {
    "xception": Architecture("xception", "Xception", "xception_weights_tf_dim_ordering_tf_kernels_notop.h5", 71, "MIT"),
    "resnet50": Architecture("resnet50", "ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", 32, "MIT"),
    "efficientnetb7": Architecture("efficientnet", "EfficientNetB7", "efficientnetb7_notop.h5", 32, "Apache-2.0"),
}


def weight_file_names(backbone: str) -> tuple[str, str]:
    """Accepted file names of the weights of `backbone` in a weights directory, preferred name first."""
    return f"{backbone}_notop.weights.h5", ARCHITECTURES[backbone].keras_weights
