"""Backbones from `.keras` files: what the checks accept and reject, and what the component writes."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from tfx.types.standard_artifacts import Model

from components.candidates.backbone import Backbone
from components.candidates.model_file import check_model_file, fixed_input_size
from components.digests import file_digest
from components.errors import WeightsError
from pipeline.settings import ROOT
from tests.model_files import BLOCKS, SIDE, write_model
from tests.real_inputs import LITE2, needs_real_inputs


@keras.saving.register_keras_serializable(package="ours")
class OurLayer(layers.Layer):
    """A layer that other programs do not have."""

    def call(self, values):
        return values


def our_activation(values):
    return values


class OurModel(keras.Model):
    """A model without a graph of layers."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(2, 1)

    def call(self, values):
        return self.conv(values)


def pixels(*shape: int | None) -> keras.KerasTensor:
    return keras.Input(shape or (SIDE, SIDE, 3), name="pixels")


def sequential(*stack: layers.Layer) -> keras.Model:
    return keras.Sequential([pixels(), *stack])


def called(model: keras.Model) -> keras.Model:
    model(tf.zeros([1, SIDE, SIDE, 3]))
    return model


def with_two_inputs() -> keras.Model:
    other = keras.Input((SIDE, SIDE, 3))
    image = pixels()
    return keras.Model([image, other], layers.Add(name="top")([image, other]))


def with_two_outputs() -> keras.Model:
    image = pixels()
    return keras.Model(image, [layers.Conv2D(2, 1, name="a")(image), layers.Conv2D(3, 1, name="b")(image)])


def with_shared_layer() -> keras.Model:
    image, shared = pixels(), layers.Conv2D(3, 1, name="shared")
    return keras.Model(image, layers.Flatten(name="top")(shared(shared(image))))


def with_inner_model() -> keras.Model:
    image, inner = pixels(), keras.Sequential([pixels(), layers.Conv2D(2, 1)], name="inner")
    return keras.Model(image, layers.Flatten(name="top")(inner(image)))


@pytest.fixture
def save(tmp_path):
    """Function that saves a model and returns the path of its file."""

    def save_model(model: keras.Model) -> str:
        path = str(tmp_path / "net.keras")
        model.save(path)
        return path

    return save_model


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """A model that takes photos of any size."""
    return str(write_model(tmp_path_factory.mktemp("model") / "net.keras"))


@pytest.mark.parametrize("side", [None, SIDE])
def test_the_fixed_input_size_is_read_from_the_file(tmp_path, side):
    assert fixed_input_size("net", str(write_model(tmp_path / "net.keras", side))) == side


def test_the_fixed_input_size_of_a_sequential_model_is_read_from_the_file(save):
    assert fixed_input_size("net", save(sequential(layers.Conv2D(2, 1)))) == SIDE
    assert fixed_input_size("net", save(called(keras.Sequential([layers.Conv2D(2, 1)])))) == SIDE


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("top", "tpo"), "has no layer 'tpo'; its last layers are rescaling, stem, body, pool, top"),
        (("body", "stem"), "'stem' does not come after 'body'"),
        (("top", "top"), "'top' does not come after 'top'"),
        (("pixels", "top"), "applies 'pixels' 0 times"),
    ],
)
def test_wrong_layers_are_rejected(file, names, message):
    with pytest.raises(WeightsError) as caught:
        check_model_file("net", file, SIDE, names)
    assert str(caught.value).startswith("backbones: net: layers: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "names", "key", "message"),
    [
        (lambda: sequential(layers.Lambda(lambda values: values)), (), "model", "has a Lambda layer"),
        (lambda: sequential(OurLayer()), (), "model", "needs ours>OurLayer, which is not part of Keras"),
        (lambda: sequential(layers.Conv2D(2, 1, activation=our_activation)), (), "model", "needs our_activation"),
        (lambda: called(OurModel()), (), "model", "needs OurModel"),
        (with_two_inputs, (), "model", "has 2 inputs"),
        (with_two_outputs, (), "layers", "has 2 outputs; name the layers to use"),
        (with_shared_layer, ("shared",), "layers", "applies 'shared' 2 times"),
        (with_inner_model, ("inner",), "layers", "'inner' in"),
        (lambda: keras.Sequential([pixels(SIDE, SIDE, 1), layers.Flatten()]), (), "model", "(side, side, 3), not"),
        (lambda: keras.Sequential([pixels(SIDE), layers.Dense(1)]), (), "model", "(side, side, 3), not [32]"),
        (lambda: keras.Sequential([pixels(8, SIDE, 3), layers.Flatten()]), (), "model", "8 x 32 pixels; they must be"),
        (
            lambda: keras.Sequential([pixels(64, None, 3), layers.Flatten()]),
            (),
            "image_size",
            "64 x any pixels, not 32",
        ),
    ],
)
def test_a_model_that_cannot_be_a_backbone_is_rejected(save, model, names, key, message):
    path = save(model())
    with pytest.raises(WeightsError) as caught:
        check_model_file("net", path, SIDE, names)
    assert str(caught.value).startswith(f"backbones: net: {key}: ")
    assert path in str(caught.value)
    assert message in str(caught.value)


def test_outputs_of_a_model_with_two_are_accepted_by_name(save):
    check_model_file("net", save(with_two_outputs()), SIDE, ["a", "b"])


def test_a_loss_that_other_programs_do_not_have_is_accepted(save):
    model = sequential(layers.Flatten())
    model.compile(loss=our_activation)
    check_model_file("net", save(model), SIDE, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("a folder", "cannot be read: Is a directory"),
        ("text", "not a .keras file (File is not a zip file)"),
        ("another archive", "not a .keras file"),
        ("no layers", "its config.json cannot be understood"),
        ("a list", "not a functional or sequential model"),
    ],
)
def test_a_file_that_is_not_a_keras_file_is_rejected(tmp_path, content, message):
    path = tmp_path / "net.keras"
    if content == "a folder":
        path.mkdir()
    elif content == "text":
        path.write_text("404: not found")
    elif content:
        with zipfile.ZipFile(path, "w") as archive:
            config = {"no layers": {"class_name": "Functional", "config": {}}, "a list": []}.get(content)
            archive.writestr("model.json" if config is None else "config.json", json.dumps(config))
    with pytest.raises(WeightsError) as caught:
        check_model_file("net", str(path), SIDE, [])
    assert str(caught.value).startswith(f"backbones: net: model: {path}")
    assert message in str(caught.value)


def test_the_check_of_the_settings_imports_neither_tensorflow_nor_keras(file):
    code = (
        "import sys\nfrom pipeline.settings import load\n"
        f"load('demo', ['backbones=[{{name: net, model: {file}}}]']).check_model_files()\n"
        "print(sorted({'tensorflow', 'keras', 'tfx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def write_backbone(folder: Path, path: str, names: list[str], image_size: int = SIDE) -> tuple[dict, tf.Module]:
    """Run the component on a file; return its record and its SavedModel."""
    model = Model()
    model.uri = str(folder)
    Backbone.test_call(
        model=model,
        name="net",
        architecture="net",
        weights="file",
        weights_dir="",
        weights_digest="",
        model_file=path,
        layers=json.dumps(names),
        licence="CC0",
        image_size=image_size,
        precision="float32",
        seed=0,
        code_digest="",
    )
    saved = folder / "Format-Serving"
    return json.loads((saved / "assets.extra" / "backbone.json").read_text()), tf.saved_model.load(str(saved))


def photos(side: int) -> tuple[np.ndarray, tf.Tensor]:
    """Random pixels, float32 [2, side, side, 3] in 0..255, and PNGs that a backbone crops to the same pixels."""
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    border = -(-side * 8 // 7) - side
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(np.pad(image, [(border // 2, border - border // 2)] * 2 + [(0, 0)])).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return images.astype(np.float32), tf.constant(files)


def test_a_backbone_pools_the_named_layers_and_describes_itself(tmp_path, file):
    record, saved = write_backbone(tmp_path / "artifact", file, ["stem", "body", "top"], image_size=40)
    images, files = photos(40)
    network = keras.models.load_model(file)
    embedded = saved.signatures["serving_default"](image_bytes=files)
    assert embedded.keys() == {"embedding_net_0", "embedding_net_1", "embedding_net_2"}
    for depth, layer in enumerate(("top", "body", "stem")):
        output = keras.Model(network.inputs, network.get_layer(layer).output)(images).numpy()
        expected = output.mean(axis=(1, 2)) if output.ndim == 4 else output
        np.testing.assert_allclose(embedded[f"embedding_net_{depth}"], expected, rtol=1e-4, atol=1e-5)
    sides = (19, 9)
    assert record == {
        "name": "net",
        "architecture": "net",
        "weights": "file",
        "weights_digest": file_digest(file),
        "licence": "CC0",
        "image_size": 40,
        "precision": "float32",
        "layers": ["stem", "body", "top"],
        "embedding_sizes": {f"embedding_net_{n}": BLOCKS[layer] for n, layer in enumerate(("top", "body", "stem"))},
        "parameters": network.count_params(),
        "multiply_adds": sides[0] ** 2 * 27 * 4 + sides[1] ** 2 * 9 * 4 * 6 + 6 * 8,
    }


def test_by_default_the_output_is_the_only_block_and_layers_after_the_last_block_do_not_count(tmp_path, file):
    network = keras.models.load_model(file)
    record, _ = write_backbone(tmp_path / "output", file, [])
    assert (record["layers"], record["embedding_sizes"]) == (["top"], {"embedding_net_0": BLOCKS["top"]})
    record, _ = write_backbone(tmp_path / "body", file, ["body"])
    assert record["parameters"] == network.count_params() - network.get_layer("top").count_params()


def test_tokens_of_a_sequential_model_in_half_precision_are_averaged_to_float32(tmp_path, save):
    dense = layers.Dense(5, dtype="mixed_bfloat16", name="tokens")
    path = save(sequential(layers.Rescaling(1 / 255), layers.Reshape((-1, 3)), dense))
    _, saved = write_backbone(tmp_path / "artifact", path, ["tokens"])
    images, files = photos(SIDE)
    embedded = saved.signatures["serving_default"](image_bytes=files)["embedding_net_0"]
    assert embedded.dtype == tf.float32
    expected = (images / 255).reshape(2, -1, 3) @ dense.kernel.numpy()
    np.testing.assert_allclose(embedded, expected.mean(axis=1), rtol=0.02, atol=0.01)


def test_an_operation_of_keras_can_be_a_block(tmp_path, save):
    image = pixels()
    path = save(keras.Model(image, layers.Conv2D(2, 1)(keras.ops.relu(image))))
    (name,) = (op.name for op in keras.models.load_model(path).operations if not isinstance(op, layers.Layer))
    record, _ = write_backbone(tmp_path / "artifact", path, [name])
    assert record["embedding_sizes"] == {"embedding_net_0": 3}


def test_a_block_without_features_is_rejected(tmp_path, save):
    path = save(sequential(layers.Reshape((4, 8, SIDE, 3), name="top")))
    with pytest.raises(WeightsError, match=r"backbones: net: layers: .*must be a feature map"):
        write_backbone(tmp_path / "artifact", path, [])


def test_a_file_without_its_weights_is_rejected(tmp_path, file):
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(path, "w") as copy:
        for name in ("config.json", "metadata.json"):
            copy.writestr(name, archive.read(name))
    with pytest.raises(WeightsError, match=f"backbones: net: model: {path}: Keras cannot load it: "):
        write_backbone(tmp_path / "artifact", str(path), [])


@needs_real_inputs
def test_a_real_model_from_a_file_is_a_backbone(tmp_path):
    names = ["block20_out", "block21_out", "top"]
    record, saved = write_backbone(tmp_path / "artifact", str(LITE2), names, image_size=260)
    images, files = photos(260)
    embedded = saved.signatures["serving_default"](image_bytes=files)["embedding_net_0"]
    expected = keras.models.load_model(LITE2)(images, training=False).numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(embedded, expected, atol=1e-3 * expected.std())
    assert list(record["embedding_sizes"].values()) == [1280, 352, 208]
    assert record["multiply_adds"] == pytest.approx(0.86e9, rel=0.05)
