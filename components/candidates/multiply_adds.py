"""Number of multiply-adds of a forward pass, a measure of the cost of a network that does not depend on the machine."""

import math
from collections.abc import Iterator

import tensorflow as tf

from components.keras_config import keras

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative", "Conv2DBackpropInput")
_PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def multiply_adds(network: keras.Model, image_size: int, traced: tf.Graph) -> int:
    """Count the multiply-adds of convolutions and matrix products in the forward pass of one photo.

    Args:
        network: Network that maps pixels, float32 [n, image_size, image_size, 3].
        image_size: Side of the input image in pixels.
        traced: Graph that contains the forward pass of any number of photos.
    """
    operations = list(_operations(traced))
    # Matrix products and dilated convolutions can merge the dimension of the photos with others. Then only a graph for
    # one photo has all sizes. Tracing one takes seconds for large networks, which mostly have convolutions only.
    if any(operation.type in (*_PRODUCTS, "SpaceToBatchND") for operation in operations):
        forward = tf.function(lambda pixels: network(pixels, training=False), autograph=False)
        pixels = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
        operations = list(_operations(forward.get_concrete_function(pixels).graph))
    return sum(map(_count, operations))


def _operations(graph: tf.Graph) -> Iterator[tf.Operation]:
    """Operations of a graph and of the functions that it calls."""
    for operation in graph.get_operations():
        yield operation
        if operation.type in _CALLS:
            yield from _operations(graph._get_function(operation.get_attr("f").name).graph)


def _count(operation: tf.Operation) -> int:
    if operation.type not in (*_CONVOLUTIONS, *_PRODUCTS):
        return 0
    shapes = [tensor.shape for tensor in operation.inputs]
    output = operation.outputs[0].shape
    if operation.type == "Conv2D":  # filter [height, width, input channels of a group, output channels]
        return _size_per_photo(output) * math.prod(shapes[1][:3])
    if operation.type == "DepthwiseConv2dNative":  # filter [height, width, channels, multiplier]
        return _size_per_photo(output) * math.prod(shapes[1][:2])
    if operation.type == "Conv2DBackpropInput":  # transposed; filter [height, width, output channels, input channels]
        return _size_per_photo(shapes[2]) * math.prod(shapes[1][:3])
    if operation.type == "Einsum":
        return output.num_elements() * _summed_size(operation.get_attr("equation").decode(), shapes)
    summed = math.prod(shapes[0][-2:]) // output[-2]  # does not depend on whether the operand is transposed
    return output.num_elements() * summed


def _size_per_photo(shape: tf.TensorShape) -> int:
    """Number of elements; the number of photos, if it is unknown, counts as 1."""
    return math.prod(shape[1:]) * (shape[0] or 1)


def _summed_size(equation: str, shapes: list[tf.TensorShape]) -> int:
    """Number of products in the sum for each element of the result of an einsum."""
    operands, _, result = equation.partition("->")
    sizes = {}
    for labels, shape in zip(operands.split(","), shapes, strict=True):
        before, _, after = labels.partition("...")
        sizes |= dict(zip(before, shape, strict=False)) | dict(zip(after[::-1], shape[::-1], strict=False))
    return math.prod(size for label, size in sizes.items() if label not in result)
