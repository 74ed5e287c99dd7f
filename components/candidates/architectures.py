"""The architectures a backbone can have. To add one: an entry here, and its name in a profile."""

from typing import NamedTuple

WEIGHTS_HOST = "https://storage.googleapis.com"  # where Keras downloads them


class Architecture(NamedTuple):
    """What the pipeline must know of one architecture of `keras.applications`.

    Attributes:
        module: submodule of `keras.applications` with the builder and its `preprocess_input`.
        builder: name of the function that builds the network.
        keras_weights: the file name Keras itself gives the ImageNet weights without top.
        min_size: smallest image side in pixels that the architecture accepts.
        licence: under which its ImageNet weights were published.
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
    """File names under which a weights directory may hold `backbone`, the preferred one first."""
    return f"{backbone}_notop.weights.h5", ARCHITECTURES[backbone].keras_weights
