"""Multiply-adds: the count equals a calculation by hand, for layers of all kinds and any number of photos."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from components.candidates.multiply_adds import multiply_adds

SIDE = 8
POSITIONS = SIDE * SIDE


def tokens(*more: layers.Layer) -> list[layers.Layer]:
    """Layers that turn 8 x 8 pixels into 64 tokens of length 3."""
    return [layers.Reshape((POSITIONS, 3)), *more]


def count(*stack: layers.Layer) -> int:
    """Multiply-adds of a sequential model."""
    network = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *stack])
    forward = tf.function(lambda pixels: network(pixels, training=False))
    traced = forward.get_concrete_function(tf.TensorSpec([None, SIDE, SIDE, 3]))
    return multiply_adds(network, SIDE, traced.graph)


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        pytest.param([layers.Conv2D(5, 3, padding="same")], 64 * 3 * 3 * 3 * 5, id="convolution"),
        pytest.param([layers.Conv2D(5, 3, strides=2)], 3 * 3 * 3 * 3 * 3 * 5, id="strided convolution"),
        pytest.param([layers.Conv2D(6, 1, groups=3)], 64 * 1 * 6, id="convolution in groups"),
        pytest.param([layers.Conv2DTranspose(5, 2, strides=2)], 64 * 2 * 2 * 3 * 5, id="transposed convolution"),
        pytest.param([layers.DepthwiseConv2D(3, padding="same")], 64 * 3 * 3 * 3, id="depthwise convolution"),
        pytest.param(
            [layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)], 64 * 3 * 3 * 3, id="dilated convolution"
        ),
        pytest.param(
            [layers.SeparableConv2D(5, 3, padding="same")], 64 * (3 * 3 * 3 + 3 * 5), id="separable convolution"
        ),
        pytest.param([layers.GlobalAveragePooling2D(), layers.Dense(7)], 3 * 7, id="dense"),
        pytest.param([layers.Dense(7)], 64 * 3 * 7, id="dense at each position"),
        pytest.param(tokens(layers.Dense(7), layers.Dense(2)), 64 * (3 * 7 + 7 * 2), id="dense for each token"),
        pytest.param(tokens(layers.EinsumDense("abc,cd->abd", (None, 7))), 64 * 3 * 7, id="einsum"),
        pytest.param([layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()], 0, id="others"),
    ],
)
def test_the_count_equals_a_calculation_by_hand(stack, expected):
    assert count(*stack) == expected


def test_attention_counts_projections_and_products_of_tokens():
    pixels = keras.Input((SIDE, SIDE, 3))
    values = layers.Reshape((POSITIONS, 3))(pixels)
    heads, size = 2, 5
    network = keras.Model(pixels, layers.MultiHeadAttention(heads, size)(values, values))
    forward = tf.function(lambda pixels: network(pixels, training=False))
    traced = forward.get_concrete_function(tf.TensorSpec([None, SIDE, SIDE, 3]))
    projections = 4 * POSITIONS * 3 * heads * size
    products = 2 * heads * POSITIONS * POSITIONS * size
    assert multiply_adds(network, SIDE, traced.graph) == projections + products


@pytest.mark.parametrize(
    ("builder", "side", "published"),
    # By He et al. (2016), Zoph et al. (2018, for comparison with NASNet) and Sandler et al. (2018).
    [("ResNet50", 224, 3.8e9), ("Xception", 299, 8.38e9), ("MobileNetV2", 224, 0.3e9)],
)
def test_published_counts_are_reproduced(builder, side, published):
    network = getattr(keras.applications, builder)(weights=None, include_top=False, input_shape=(side, side, 3))
    forward = tf.function(lambda pixels: network(pixels, training=False), autograph=False)
    traced = forward.get_concrete_function(tf.TensorSpec([None, side, side, 3]))
    assert multiply_adds(network, side, traced.graph) == pytest.approx(published, rel=0.03)
