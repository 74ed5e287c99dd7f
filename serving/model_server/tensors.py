"""Conversion between TensorProto and NumPy arrays."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server.status import invalid

_MAX_BYTES = 2**31 - 1
_STRING_BYTES = 24  # size of an empty string in TensorFlow

# The field of TensorProto that holds the values of each type, and the conversion from NumPy to the field.
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
    """Return the name of a type in TensorFlow's C++ code, which error messages contain."""
    return {tf.float16: "half", tf.float32: "float", tf.float64: "double"}.get(type_, type_.name)


def decode(alias: str, tensor: tensor_pb2.TensorProto) -> np.ndarray:
    """Decode a tensor of a request; string tensors become object arrays of bytes.

    Args:
        alias: Name of the input in the request.
        tensor: Tensor. As in TensorFlow, the last value is repeated if there are fewer values than elements.

    Raises:
        ServingError: With INVALID_ARGUMENT, if the message is not a valid tensor.
    """
    try:
        type_ = tf.dtypes.as_dtype(tensor.dtype)
        # Repeated values let a message of a few bytes describe a tensor that does not fit into memory.
        element_bytes = _STRING_BYTES if type_ == tf.string else type_.size
        if math.prod(dim.size for dim in tensor.tensor_shape.dim) * element_bytes > _MAX_BYTES:
            raise ValueError("larger than any request")
        return np.asarray(tf.io.parse_tensor(tensor.SerializeToString(), type_).numpy(), type_.as_numpy_dtype)
    except (TypeError, ValueError, AttributeError, NotImplementedError, tf.errors.OpError):
        raise invalid(f"tensor parsing error: {alias}") from None


def encode(values: np.ndarray) -> tensor_pb2.TensorProto:
    """Encode a tensor of a response, with values in typed fields as TensorFlow Serving does."""
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
