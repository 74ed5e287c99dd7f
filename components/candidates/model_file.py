"""Keras models in `.keras` files as backbones: checks of a file that need neither TensorFlow nor Keras.

A `.keras` file is a zip archive; its config.json has the classes, names and connections of the layers.
"""

import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from components.errors import WeightsError

_CHANNELS = 3
_MAX_NAMES_SHOWN = 5


class _Layer(NamedTuple):
    """A layer of the model.

    Attributes:
        name: Name of the layer.
        is_model: Whether the layer is a model that has layers of its own.
        uses: Number of times that the model applies the layer.
    """

    name: str
    is_model: bool
    uses: int


class _Model(NamedTuple):
    """What the configuration of a model says.

    Attributes:
        layers: Layers, in the order of the forward pass.
        input_shape: Shape of the input without the number of photos; None stands for any size.
        outputs: Number of outputs.
    """

    layers: list[_Layer]
    input_shape: list[int | None]
    outputs: int


def check_model_file(backbone: str, path: str, image_size: int, layers: Sequence[str]) -> None:
    """Check that the model in a file can be a backbone.

    Args:
        backbone: Name of the backbone, for messages.
        path: Path of the file.
        image_size: Width and height in pixels of the images that the backbone receives.
        layers: Layers whose outputs are the outputs of the last blocks, in the order of the forward pass; if empty, the
            output of the model is the only one.

    Raises:
        WeightsError: If it cannot; the message names the setting to change.
    """
    model = _read(backbone, path)
    if any(side not in (None, image_size) for side in model.input_shape[:2]):
        size = " x ".join("any" if side is None else str(side) for side in model.input_shape[:2])
        raise _error(backbone, "image_size", f"{path} takes images of {size} pixels, not {image_size} x {image_size}")
    if not layers and model.outputs != 1:
        raise _error(backbone, "layers", f"{path} has {model.outputs} outputs; name the layers to use")
    _check_layers(backbone, path, model, layers)


def fixed_input_size(backbone: str, path: str) -> int | None:
    """Width and height in pixels of the images that the model in a file takes; None if it takes several sizes.

    Args:
        backbone: Name of the backbone, for messages.
        path: Path of the file.

    Raises:
        WeightsError: If the file cannot be read, or its model does not take photos.
    """
    return next((side for side in _read(backbone, path).input_shape[:2] if side is not None), None)


def _check_layers(backbone: str, path: str, model: _Model, layers: Sequence[str]) -> None:
    by_name = {layer.name: layer for layer in model.layers}
    for name in layers:
        if name not in by_name:
            last = ", ".join(layer.name for layer in model.layers[-_MAX_NAMES_SHOWN:])
            raise _error(backbone, "layers", f"{path} has no layer {name!r}; its last layers are {last}")
        if by_name[name].is_model:
            raise _error(backbone, "layers", f"{name!r} in {path} is a model itself; name a layer before or after it")
        if by_name[name].uses != 1:
            raise _error(backbone, "layers", f"{path} applies {name!r} {by_name[name].uses} times; name another layer")
    order = list(by_name)
    for name, following in itertools.pairwise(layers):
        if order.index(name) >= order.index(following):
            raise _error(
                backbone,
                "layers",
                f"{following!r} does not come after {name!r} in {path}; list each layer once, in the order of the "
                "forward pass",
            )


def _read(backbone: str, path: str) -> _Model:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except FileNotFoundError:
        raise _error(backbone, "model", f"{path}: no such file") from None
    except OSError as error:
        raise _error(backbone, "model", f"{path}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, KeyError, RuntimeError, ValueError) as error:  # RuntimeError: encrypted
        raise _error(backbone, "model", f"{path}: not a .keras file ({error}); write it with model.save") from None
    _check_classes(backbone, path, config)
    if not isinstance(config, dict) or config.get("class_name") not in ("Functional", "Sequential"):
        raise _error(backbone, "model", f"{path}: not a functional or sequential model")
    try:
        return _parse(backbone, path, config)
    except (KeyError, TypeError, IndexError) as error:
        raise _error(backbone, "model", f"{path}: its config.json cannot be understood ({error!r})") from None


def _parse(backbone: str, path: str, config: dict[str, Any]) -> _Model:
    layers = config["config"]["layers"]
    input_layers = [layer["config"] for layer in layers if layer["class_name"] == "InputLayer"]
    shapes = [layer.get("batch_shape") or layer.get("batch_input_shape") for layer in input_layers]
    if config["class_name"] == "Sequential":
        shapes = shapes or [config["config"].get("build_input_shape")]
        uses = {layer["config"]["name"]: 1 for layer in layers}
        outputs = 1
    else:
        uses = {layer["config"]["name"]: len(layer["inbound_nodes"]) for layer in layers}
        outputs = len(list(_tensors(config["config"]["output_layers"])))
    if len(shapes) != 1:
        raise _error(backbone, "model", f"{path} has {len(shapes)} inputs; a backbone has one, the pixels")
    if not shapes[0] or len(shapes[0]) != 4 or shapes[0][3] != _CHANNELS:
        shape = shapes[0] and shapes[0][1:]
        raise _error(backbone, "model", f"{path}: its input must have the shape (side, side, {_CHANNELS}), not {shape}")
    height, width = shapes[0][1:3]
    if None not in (height, width) and height != width:
        raise _error(backbone, "model", f"{path} takes images of {height} x {width} pixels; they must be square")
    parsed = [
        _Layer(name, layer["class_name"] in ("Functional", "Sequential"), uses[name])
        for layer in layers
        for name in [layer["config"]["name"]]
    ]
    return _Model(parsed, shapes[0][1:], outputs)


def _tensors(references: Any) -> Iterator[list[Any]]:
    """References [layer, node, tensor] in a structure of lists and dicts."""
    if isinstance(references, dict):
        references = list(references.values())
    if references and isinstance(references[0], str):
        yield references
    else:
        for inner in references:
            yield from _tensors(inner)


def _check_classes(backbone: str, path: str, config: Any) -> None:
    """Reject code: Lambda layers, which Keras does not load in safe mode, and what is not part of Keras."""
    if isinstance(config, dict):
        name, module = config.get("class_name"), str(config.get("module", "keras"))
        if name in ("Lambda", "__lambda__"):
            raise _error(
                backbone, "model", f"{path} has a Lambda layer, which is code; use layers or keras.ops instead"
            )
        # Keras writes functions of its own by name only.
        if name and (module.partition(".")[0] != "keras" if name != "function" else module == "builtins"):
            needed = config.get("config") if name == "function" else config.get("registered_name") or name
            raise _error(backbone, "model", f"{path} needs {needed}, which is not part of Keras")
        config = [inner for key, inner in config.items() if key != "compile_config"]  # not loaded
    if isinstance(config, list):
        for inner in config:
            _check_classes(backbone, path, inner)


def _error(backbone: str, key: str, problem: str) -> WeightsError:
    return WeightsError(f"backbones: {backbone}: {key}: {problem}")
