"""Tiny Keras models in `.keras` files, as backbones."""

from pathlib import Path

SIDE = 32
# Output sizes of the blocks of `write_model`, in the order of the forward pass.
BLOCKS = {"stem": 4, "body": 6, "top": 8}


def write_model(path: Path, side: int | None = None, channels: int = 3, scale: float = 1 / 255) -> Path:
    """Write a model with three blocks, two feature maps and a vector, and random weights.

    Args:
        path: Path of the file.
        side: Side of the input in pixels; None stands for any size.
        channels: Number of channels of the input.
        scale: Factor of the pixels; files with different factors have different contents.
    """
    import keras

    keras.utils.set_random_seed(1)
    pixels = keras.Input((side, side, channels), name="pixels")
    values = keras.layers.Rescaling(scale, name="rescaling")(pixels)
    values = keras.layers.Conv2D(BLOCKS["stem"], 3, strides=2, activation="relu", name="stem")(values)
    values = keras.layers.Conv2D(BLOCKS["body"], 3, strides=2, activation="relu", name="body")(values)
    values = keras.layers.GlobalAveragePooling2D(name="pool")(values)
    keras.Model(pixels, keras.layers.Dense(BLOCKS["top"], name="top")(values)).save(path)
    return path
