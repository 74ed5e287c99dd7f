"""Errors as TensorFlow Serving reports them: a canonical code and a text."""

import grpc
import tensorflow as tf

Code = grpc.StatusCode
_BY_NUMBER = {code.value[0]: code for code in Code}


class ServingError(Exception):
    """What a client gets instead of an answer.

    Attributes:
        code: canonical code.
        message: text for the client.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code on the wire, also that of `tensorflow.error.Code`."""
        return self.code.value[0]

    @property
    def name(self) -> str:
        """As in `tensorflow.error.Code`."""
        return self.code.name


def as_serving_error(error: Exception) -> ServingError:
    """`error` with the code it deserves; TensorFlow's own errors have one."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(_BY_NUMBER.get(error.error_code, Code.UNKNOWN), error.message)
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, "out of memory")
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT with a text."""
    return ServingError(Code.INVALID_ARGUMENT, message)
