"""TensorProto to numpy and back."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server.status import invalid

_MOST_BYTES = 2**31 - 1
_STRING_BYTES = 24  # of an empty one, in TensorFlow

# The field of TensorProto that holds values of a type, and how numpy's become the field's.
_FIELDS: dict[tf.DType, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    tf.float32: ("float_val", lambda values: values),
    tf.float64: ("double_val", lambda values: values),
    tf.string: ("string_val", lambda values: values),
    tf.bool: ("bool_val", lambda values: values),
    tf.int64: ("int64_val", lambda values: values),
    tf.uint64: ("uint64_val", lambda values: values),
    tf.uint32: ("uint32_val", lambda values: values),
    tf.float16: ("half_val", lambda values: values.view(np.uint16)),
    tf.bfloat16: ("half_val", lambda values: values.view(np.uint16)),
    tf.complex64: ("scomplex_val", lambda values: values.view(np.float32)),
    tf.complex128: ("dcomplex_val", lambda values: values.view(np.float64)),
} | {type_: ("int_val", lambda values: values) for type_ in (tf.int32, tf.int16, tf.int8, tf.uint16, tf.uint8)}


def type_name(type_: tf.DType) -> str:
    """The name of a type in TensorFlow's C++, whose texts clients see."""
    return {tf.float16: "half", tf.float32: "float", tf.float64: "double"}.get(type_, type_.name)


def decode(alias: str, tensor: tensor_pb2.TensorProto) -> np.ndarray:
    """Values of a tensor from a request; strings as objects of type bytes.

    Args:
        alias: its name in the request.
        tensor: as TensorFlow reads it: a list of values that is too short is filled with its last one.

    Raises:
        ServingError: INVALID_ARGUMENT, it is no tensor.
    """
    try:
        type_ = tf.dtypes.as_dtype(tensor.dtype)
        # A few bytes can stand for a tensor that fills the memory.
        each = _STRING_BYTES if type_ == tf.string else type_.size
        if math.prod(dim.size for dim in tensor.tensor_shape.dim) * each > _MOST_BYTES:
            raise ValueError("larger than any request")
        return np.asarray(tf.io.parse_tensor(tensor.SerializeToString(), type_).numpy(), type_.as_numpy_dtype)
    except (TypeError, ValueError, AttributeError, NotImplementedError, tf.errors.OpError):
        raise invalid(f"tensor parsing error: {alias}") from None


def encode(values: np.ndarray) -> tensor_pb2.TensorProto:
    """A tensor for a response, values in typed fields as TensorFlow Serving's."""
    type_ = tf.dtypes.as_dtype(values.dtype)
    if type_ not in _FIELDS:
        return tf.make_tensor_proto(values)
    proto = tensor_pb2.TensorProto(dtype=type_.as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in values.shape:
        proto.tensor_shape.dim.add(size=size)
    field, convert = _FIELDS[type_]
    getattr(proto, field).extend(convert(values.ravel()).tolist())
    return proto
