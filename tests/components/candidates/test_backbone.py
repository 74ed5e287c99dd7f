"""Backbones: preprocessing, random and given weights, and the SavedModel."""

import importlib
import io
import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils
from PIL import Image
from tfx.types.standard_artifacts import Model

from components.candidates.architectures import ARCHITECTURES, weight_file_names
from components.candidates.backbone import (
    Backbone,
    build_embedder,
    build_network,
    decode_photos,
    find_weights,
    pool_blocks,
    preprocessing,
    weights_source,
)
from components.errors import WeightsError

SIDE = 71  # smallest size that all architectures accept
EMBEDDING_SIZES = {"embedding_xception_0": 2048, "embedding_xception_1": 1024, "embedding_xception_2": 728}
# Building EfficientNetB7 takes ten seconds.
FAST_ARCHITECTURES = ("xception", "resnet50")
ALL_ARCHITECTURES = (*FAST_ARCHITECTURES, pytest.param("efficientnetb7", marks=pytest.mark.slow))


def noise_photo(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, bytes]:
    """Random pixels, uint8 [height, width, 3], and the PNG with the same pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return pixels, buffer.getvalue()


def with_border(pixels: np.ndarray) -> bytes:
    """PNG of `pixels` [SIDE, SIDE, 3] inside a border that the backbones crop."""
    border = -(-SIDE * 8 // 7) - SIDE
    buffer = io.BytesIO()
    Image.fromarray(np.pad(pixels, [(border // 2, border - border // 2)] * 2 + [(0, 0)])).save(buffer, "PNG")
    return buffer.getvalue()


def save_in_keras_format(network: keras.Model, path: Path) -> None:
    """Save the weights in the format of the files that Keras downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def embedder(network: keras.Model, architecture: str, name: str) -> tf.Module:
    blocks = pool_blocks(network, name, ARCHITECTURES[architecture].layers)
    return build_embedder(blocks, preprocessing(architecture), SIDE)


def pooled(network: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Average of the feature map of `network` over its positions, float32 [n, d]."""
    return network(pixels, training=False).numpy().mean(axis=(1, 2))


def distance(embeddings, expected) -> float:
    """Maximum difference divided by the standard deviation, because embeddings of random networks are tiny."""
    return float(np.abs(np.asarray(embeddings) - expected).max() / np.asarray(expected).std())


def assert_same_weights(network: keras.Model, other: keras.Model) -> None:
    pairs = list(zip(network.get_weights(), other.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def networks():
    """Function from architecture to a network with random weights, which is built once."""
    built = {}

    def network(architecture: str) -> keras.Model:
        if architecture not in built:
            built[architecture] = build_network(architecture, "random", SIDE, seed=3)
        return built[architecture]

    return network


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory):
    """Function from architecture to two folders with its weights: under the preferred name and under Keras's name."""
    saved = {}

    def folders(architecture: str) -> tuple[Path, Path]:
        if architecture not in saved:
            preferred, keras_folder = tmp_path_factory.mktemp("preferred"), tmp_path_factory.mktemp("keras")
            networks(architecture).save_weights(preferred / f"{architecture}_notop.weights.h5")
            save_in_keras_format(networks(architecture), keras_folder / ARCHITECTURES[architecture].keras_weights)
            saved[architecture] = preferred, keras_folder
        return saved[architecture]

    return folders


@pytest.fixture
def download(monkeypatch):
    """Function that replaces the download of Keras with `get_path(file name)`."""

    def replace(get_path):
        monkeypatch.setattr(file_utils, "get_file", lambda name, *_, **__: get_path(name))

    return replace


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_photos_are_preprocessed_as_in_keras_applications(networks, architecture):
    network = networks(architecture)
    module = importlib.import_module(f"keras.applications.{ARCHITECTURES[architecture].module}")
    images = [noise_photo(seed)[0] for seed in range(2)]
    files = tf.constant(list(map(with_border, images)))
    embedded = embedder(network, architecture, "net").embed(files)
    pixels = np.stack(images).astype(np.float32)
    expected = pooled(network, module.preprocess_input(pixels.copy()))
    assert distance(embedded["embedding_net_0"], expected) < 1e-3
    assert [len(values.shape) for values in embedded.values()] == [2, 2, 2]
    assert distance(expected[::-1], expected) > 0.01
    if architecture in FAST_ARCHITECTURES:
        assert distance(pooled(network, pixels), expected) > 0.1


def test_decoding_crops_the_border_and_resizes_with_antialiasing():
    pixels, _ = noise_photo(0)
    data = with_border(pixels)
    np.testing.assert_array_equal(decode_photos(tf.constant([data]), SIDE)[0], pixels)
    _, large = noise_photo(1, (SIDE * 9, SIDE * 6))
    small = decode_photos(tf.constant([data, large]), SIDE).numpy()
    assert small.shape == (2, SIDE, SIDE, 3)
    # Noise that is reduced to a ninth and a sixth loses nearly all contrast; without antialiasing it would keep it.
    assert small[0].std() > 60
    assert small[1].std() < 20
    assert small[1].mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("size", [(3 * 82, 82), (82, 3 * 82)], ids=["wide", "high"])
def test_decoding_crops_long_photos_to_the_central_square(size):
    pixels, _ = noise_photo(0, size)
    square = np.array(Image.open(io.BytesIO(with_border(noise_photo(1)[0]))))
    top, left = (size[1] - len(square)) // 2, (size[0] - len(square)) // 2
    pixels[top : top + len(square), left : left + len(square)] = square
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_photos(tf.constant([buffer.getvalue()]), SIDE)[0], noise_photo(1)[0])


def test_jpeg_and_png_of_one_image_decode_to_similar_pixels():
    smooth = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    files = []
    for image_format in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        smooth.save(buffer, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
        files.append(buffer.getvalue())
    png, jpeg = decode_photos(tf.constant(files), SIDE).numpy()
    assert np.abs(png - jpeg).max() <= 4


@pytest.mark.parametrize("architecture", FAST_ARCHITECTURES)
def test_random_weights_depend_only_on_the_seed(networks, architecture):
    assert_same_weights(networks(architecture), build_network(architecture, "random", SIDE, seed=3))
    other = build_network(architecture, "random", SIDE, seed=4)
    kernels = [v.numpy() for v in other.variables if "kernel" in v.path]
    before = [v.numpy() for v in networks(architecture).variables if "kernel" in v.path]
    assert not any(np.array_equal(a, b) for a, b in zip(kernels, before, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_find_weights_prefers_the_short_file_name_to_the_keras_file_name(architecture, tmp_path):
    preferred, keras_name = weight_file_names(architecture)
    (tmp_path / keras_name).write_bytes(b"")
    assert find_weights(architecture, str(tmp_path)) == str(tmp_path / keras_name)
    (tmp_path / preferred).write_bytes(b"")
    assert find_weights(architecture, str(tmp_path)) == str(tmp_path / preferred)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_error_for_missing_weights_contains_both_file_names(architecture, tmp_path):
    for other in set(ARCHITECTURES) - {architecture}:
        (tmp_path / weight_file_names(other)[0]).write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        find_weights(architecture, str(tmp_path))
    for part in (str(tmp_path), architecture, *weight_file_names(architecture)):
        assert part in str(caught.value)


def test_weights_dir_with_random_weights_is_rejected(tmp_path):
    with pytest.raises(WeightsError, match="not used with weights=random"):
        weights_source("xception", "random", str(tmp_path))
    assert weights_source("xception", "random", "") == "random"


@pytest.mark.parametrize("folder", [0, 1], ids=["preferred", "keras"])
@pytest.mark.parametrize("architecture", FAST_ARCHITECTURES)
def test_weights_file_determines_the_weights_for_any_seed(networks, weights, architecture, folder):
    path = find_weights(architecture, str(weights(architecture)[folder]))
    assert_same_weights(build_network(architecture, path, SIDE, seed=9), networks(architecture))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("xception_notop.weights.h5", "of another architecture"),
        (ARCHITECTURES["xception"].keras_weights, "of another architecture"),
        ("xception_notop.weights.h5", "in the wrong format"),
        ("xception_notop.weights.h5", "truncated"),
        ("xception_notop.weights.h5", "text"),
        (ARCHITECTURES["xception"].keras_weights, "text"),
    ],
)
def test_error_for_an_invalid_weights_file_contains_its_path(weights, tmp_path, name, content):
    path = tmp_path / name
    if content == "of another architecture":
        path.write_bytes(next(weights("resnet50")[not name.endswith(".weights.h5")].iterdir()).read_bytes())
    elif content == "in the wrong format":
        path.write_bytes(next(weights("xception")[1].iterdir()).read_bytes())
    elif content == "truncated":
        path.write_bytes(next(weights("xception")[0].iterdir()).read_bytes()[:1_000_000])
    else:
        path.write_text("404: not found")
    with pytest.raises(WeightsError) as caught:
        build_network("xception", str(path), SIDE, seed=0)
    assert str(caught.value).startswith(f"{path}: not a weights file of xception")


@pytest.mark.parametrize("architecture", FAST_ARCHITECTURES)
def test_error_for_a_failed_download_explains_weights_dir(download, architecture):
    def fail(name):
        raise Exception(
            f"URL fetch failure on https://storage.googleapis.com/{name}: None -- Name or service not known"
        )

    download(fail)
    with pytest.raises(WeightsError) as caught:
        build_network(architecture, "imagenet", SIDE, seed=0)
    for part in (architecture, "URL fetch failure", "--set weights_dir=", *weight_file_names(architecture)):
        assert part in str(caught.value)


def test_errors_other_than_failed_downloads_are_not_converted(download):
    def fail(name):
        raise MemoryError("out of memory")

    download(fail)
    with pytest.raises(MemoryError, match="out of memory"):
        build_network("resnet50", "imagenet", SIDE, seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_from_a_folder_and_downloaded_weights_give_equal_embeddings(
    download, monkeypatch, tmp_path, architecture
):
    if architecture == "efficientnetb7":
        smallest = ARCHITECTURES[architecture]._replace(builder="EfficientNetB0")
        monkeypatch.setitem(ARCHITECTURES, architecture, smallest)
    path = tmp_path / ARCHITECTURES[architecture].keras_weights
    save_in_keras_format(build_network(architecture, "random", SIDE, seed=3), path)
    download(lambda name: str(path))
    pixels = tf.constant(noise_photo(0)[0][None], tf.float32)
    downloaded = build_network(architecture, "imagenet", SIDE, seed=0)(pixels, training=False)
    from_folder = build_network(architecture, str(path), SIDE, seed=0)(pixels, training=False)
    assert distance(from_folder, downloaded) < 1e-3


@pytest.fixture(scope="module")
def backbone(weights, tmp_path_factory):
    """Artifact of the component for Xception with a weights file, and the directory of its SavedModel."""
    model = Model()
    model.uri = str(tmp_path_factory.mktemp("backbone"))
    Backbone.test_call(
        model=model,
        name="xception",
        architecture="xception",
        weights="imagenet",
        weights_dir=str(weights("xception")[0]),
        weights_digest="",
        model_file="",
        layers="[]",
        licence="",
        image_size=SIDE,
        precision="float32",
        seed=0,
        code_digest="",
    )
    return model, Path(model.uri) / "Format-Serving"


def test_saved_model_stores_each_variable_once(backbone, networks):
    _, path = backbone
    size = sum(variable.numpy().nbytes for variable in networks("xception").variables)
    data = sum(file.stat().st_size for file in (path / "variables").glob("variables.data-*"))
    assert size <= data < 1.01 * size


def test_saved_model_embeds_photos_of_any_size_like_the_network(backbone, networks):
    _, path = backbone
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    files = tf.constant([noise_photo(0)[1], noise_photo(1, (100, 40))[1], noise_photo(2, (8, 8))[1]])
    embedded = signature(image_bytes=files)
    expected = embedder(networks("xception"), "xception", "xception").embed(files)
    assert embedded.keys() == EMBEDDING_SIZES.keys()
    for name, size in EMBEDDING_SIZES.items():
        assert embedded[name].shape == (3, size)
        assert distance(embedded[name], expected[name]) < 1e-3


def test_record_describes_the_backbone(backbone, networks):
    model, path = backbone
    record = json.loads((path / "assets.extra" / "backbone.json").read_text())
    digest = record.pop("weights_digest")
    assert record.pop("licence").startswith("MIT, as published with Keras")
    # Convolutions do not grow exactly with the number of pixels, because of their borders.
    assert record.pop("multiply_adds") / SIDE**2 == pytest.approx(8.36e9 / 299**2, rel=0.2)
    assert record == {
        "name": "xception",
        "architecture": "xception",
        "weights": "imagenet",
        "image_size": SIDE,
        "precision": "float32",
        "layers": ["block13_sepconv1_act:input", "block14_sepconv1:input", "block14_sepconv2_act"],
        "embedding_sizes": EMBEDDING_SIZES,
        "parameters": networks("xception").count_params(),
    }
    assert len(digest) == 64
    assert model.get_string_custom_property("weights_digest") == digest
    assert model.get_string_custom_property("architecture") == "xception"
