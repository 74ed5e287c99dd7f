"""Conversion between the REST API's JSON and NumPy, in TensorFlow Serving's row and column formats."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serving.model_server.status import ServingError, invalid
from serving.model_server.tensors import type_name

_JSON_TYPES = {
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
    bool: "Bool",
    type(None): "Null",
}
_MAX_DIMENSIONS = 64  # limit of NumPy
# TensorFlow Serving decodes with Abseil's Base64Unescape, which accepts white space anywhere, missing padding, and dots
# as padding.
_BASE64_SPACE = re.compile(r"[ \t\n\v\f\r]+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}([=.]{2})?|[A-Za-z0-9+/]{3}[=.]?)?")


@dataclass(frozen=True)
class JsonRequest:
    """Body of a Predict request.

    Attributes:
        signature_name: Name of the signature; empty for `serving_default`.
        instances: Rows of the row format, each a value or an object of values by input; None in the column format.
        inputs: Value of the column format: a tensor or an object of tensors by input.
    """

    signature_name: str
    instances: list | None
    inputs: object

    @classmethod
    def parse(cls, body: bytes) -> "JsonRequest":
        """Parse a body.

        Raises:
            ServingError: With INVALID_ARGUMENT, if the body is not a valid Predict request.
        """
        if not body:
            raise invalid("JSON Parse error: The document is empty")
        try:
            request = json.loads(body)
        except json.JSONDecodeError as error:
            raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: {error}") from None
        if not isinstance(request, dict):
            json_type = _JSON_TYPES[type(request)]
            raise invalid(f"JSON Value: {_abbreviated(request)} Type: {json_type} is not of expected type: object")
        signature_name = request.get("signature_name", "")
        if not isinstance(signature_name, str):
            raise invalid("'signature_name' key must be a string value.")
        if ("instances" in request) == ("inputs" in request):
            raise invalid(
                "Not formatted correctly expecting only one of 'instances' or 'inputs' keys to exist"
                if "inputs" in request
                else "Missing 'inputs' or 'instances' key"
            )
        instances = request.get("instances")
        if "instances" in request and (not isinstance(instances, list) or not instances):
            raise invalid("Expecting 'instances' value to be a list/array with at least one value")
        return cls(signature_name, instances, request.get("inputs"))

    def arrays(self, signature: meta_graph_pb2.SignatureDef) -> dict[str, np.ndarray]:
        """Return the inputs of `signature` by name; string tensors are object arrays of bytes.

        Raises:
            ServingError: With INVALID_ARGUMENT, if the request does not match the signature.
        """
        types = {alias: tf.dtypes.as_dtype(info.dtype) for alias, info in signature.inputs.items()}
        try:
            return self._columns(types) if self.instances is None else _rows(self.instances, types)
        except RecursionError:
            raise invalid("JSON Value is nested too deeply") from None

    def response(self, outputs: Mapping[str, np.ndarray]) -> dict:
        """Return `outputs` as a response body in the format of the request.

        Raises:
            ServingError: With INVALID_ARGUMENT, if the request has the row format but the outputs have no rows.
        """
        columns = {alias: _json(alias, values) for alias, values in outputs.items()}
        if self.instances is None:
            return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
        size = None
        for alias, values in outputs.items():
            if not values.ndim:
                raise invalid(f"Tensor name: {alias} has no shape information")
            if size not in (None, len(values)):
                raise invalid(f"Tensor name: {alias} has inconsistent batch size: {len(values)} expecting: {size}")
            size = len(values)
        if len(columns) == 1:
            return {"predictions": next(iter(columns.values()))}
        return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}

    def _columns(self, types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
        if not _is_named(self.inputs):
            if len(types) != 1:
                raise invalid(
                    "inputs is a plain value/list, but expecting an object as multiple input tensors required"
                )
            return {alias: _array(self.inputs, type_) for alias, type_ in types.items()}
        missing = types.keys() - self.inputs.keys()
        if missing:
            raise invalid(f"Missing named input: {min(missing)} in 'inputs' object.")
        return {alias: _array(self.inputs[alias], type_) for alias, type_ in types.items()}


def _rows(instances: list, types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    named = _is_named(instances[0])
    if not named and len(types) != 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    rows: dict[str, list[np.ndarray]] = {alias: [] for alias in types}
    for index, instance in enumerate(instances):
        try:
            if _is_named(instance) != named:
                raise invalid(f"Expecting {'object' if named else 'value/list'} but got {_JSON_TYPES[type(instance)]}")
            for alias, type_ in types.items():
                if named and alias not in instance:
                    raise invalid(f"JSON object: does not have named input: {alias}")
                row = _array(instance[alias] if named else instance, type_)
                if rows[alias] and rows[alias][0].shape != row.shape:
                    raise invalid(f"Expecting tensor shape: {rows[alias][0].shape} but got: {row.shape}")
                rows[alias].append(row)
        except ServingError as error:
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. Error: INVALID_ARGUMENT: {error.message}"
            ) from None
    return {alias: np.stack(arrays) for alias, arrays in rows.items()}


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _array(value: object, type_: tf.DType) -> np.ndarray:
    """Convert nested lists of equal shape to an array."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > _MAX_DIMENSIONS:
        raise invalid("JSON Value is nested too deeply")
    flat: list = []
    _collect(value, tuple(shape), _converter(type_), flat)
    array = np.empty(len(flat), type_.as_numpy_dtype)
    try:
        array[:] = flat
    except (OverflowError, ValueError):
        raise invalid(
            f"JSON Value: {_abbreviated(value)} Type: Number is not of expected type: {type_name(type_)}"
        ) from None
    return array.reshape(shape)


def _collect(value: object, shape: tuple[int, ...], convert: Callable[[object], object], flat: list) -> None:
    if not shape:
        flat.append(convert(value))
    elif not isinstance(value, list) or len(value) != shape[0]:
        actual = len(value) if isinstance(value, list) else _JSON_TYPES[type(value)]
        raise invalid(f"Expecting tensor size: {shape[0]} but got: {actual}")
    elif len(shape) > 1:
        for inner in value:
            _collect(inner, shape[1:], convert, flat)
    else:
        flat.extend(map(convert, value))


def _converter(type_: tf.DType) -> Callable[[object], object]:
    """Return a function that converts a JSON value to that type or raises ServingError."""
    if type_ == tf.string:
        accepted: tuple[type, ...] = (str,)
    elif type_ == tf.bool:
        accepted = (bool,)
    else:
        accepted = (int,) if type_.is_integer else (int, float)

    def convert(value: object) -> object:
        if type_ == tf.string and _is_base64(value):
            return _decode_base64(value["b64"])
        if type(value) not in accepted:
            kind = _JSON_TYPES[type(value)]
            raise invalid(f"JSON Value: {_abbreviated(value)} Type: {kind} is not of expected type: {type_name(type_)}")
        return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value

    return convert


def _decode_base64(text: object) -> bytes:
    """Decode base64 as TensorFlow Serving does.

    Raises:
        ServingError: With INVALID_ARGUMENT, if TensorFlow Serving cannot decode the text either.
    """
    compact = _BASE64_SPACE.sub("", text) if isinstance(text, str) else ""
    if not isinstance(text, str) or not _BASE64.fullmatch(compact):
        raise invalid("Unable to base64 decode")
    data = compact.rstrip("=.")
    return base64.b64decode(data + "=" * (-len(data) % 4))


def _json(alias: str, values: np.ndarray) -> object:
    """Convert an output to nested lists.

    Outputs whose name ends in `_bytes` are base64-encoded. Floats get the shortest decimal form that identifies them.
    """
    if values.dtype == object:
        texts = np.empty(values.shape, object)
        for index, value in np.ndenumerate(values):
            binary = alias.endswith("_bytes")
            texts[index] = {"b64": base64.b64encode(value).decode()} if binary else value.decode("utf-8", "replace")
        return texts.tolist()
    if np.issubdtype(values.dtype, np.floating) and values.dtype != np.float64:
        return values.astype(str).astype(np.float64).tolist()
    return values.tolist()


def _abbreviated(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
