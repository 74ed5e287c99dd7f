"""Errors with the canonical codes and messages of TensorFlow Serving."""

import grpc
import tensorflow as tf

Code = grpc.StatusCode
_BY_NUMBER = {code.value[0]: code for code in Code}


class ServingError(Exception):
    """Error that is returned to the client.

    Attributes:
        code: Canonical status code.
        message: Message for the client.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """Number of the code, in gRPC and in `tensorflow.error.Code`."""
        return self.code.value[0]

    @property
    def name(self) -> str:
        """Name of the code in `tensorflow.error.Code`."""
        return self.code.name


def as_serving_error(error: Exception) -> ServingError:
    """Convert an exception to a ServingError; TensorFlow's errors keep their code."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(_BY_NUMBER.get(error.error_code, Code.UNKNOWN), error.message)
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, "out of memory")
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def invalid(message: str) -> ServingError:
    """Return a ServingError with INVALID_ARGUMENT."""
    return ServingError(Code.INVALID_ARGUMENT, message)
