"""Backbones: preprocessing as in keras.applications, seeded or given weights, and each variable saved once."""

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
    weights_source,
)
from components.errors import WeightsError

SIDE = 71  # the least that all of them take
# EfficientNetB7 takes ten seconds to build.
CHEAP = ("xception", "resnet50")
ALL = (*CHEAP, pytest.param("efficientnetb7", marks=pytest.mark.slow))


def photo(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, bytes]:
    """Pixels [height, width, 3] and the same as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return pixels, buffer.getvalue()


def framed(pixels: np.ndarray) -> bytes:
    """PNG of `pixels` [SIDE, SIDE, 3] with the border around that the backbones do not look at."""
    border = -(-SIDE * 8 // 7) - SIDE
    buffer = io.BytesIO()
    Image.fromarray(np.pad(pixels, [(border // 2, border - border // 2)] * 2 + [(0, 0)])).save(buffer, "PNG")
    return buffer.getvalue()


def save_as_keras(network: keras.Model, path: Path) -> None:
    """In the format of the files that Keras downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def distance(embeddings, wanted) -> float:
    """Greatest difference, as a share of how much embeddings vary; those of random networks are tiny."""
    return float(np.abs(np.asarray(embeddings) - wanted).max() / np.asarray(wanted).std())


def assert_same_weights(network: keras.Model, other: keras.Model) -> None:
    pairs = list(zip(network.get_weights(), other.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def networks():
    """Architecture -> network with random weights; each is built once."""
    built = {}

    def network(architecture: str) -> keras.Model:
        if architecture not in built:
            built[architecture] = build_network(architecture, "random", SIDE, seed=3)
        return built[architecture]

    return network


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory):
    """Architecture -> folders with its weights under our name and under Keras's."""
    written = {}

    def folders(architecture: str) -> tuple[Path, Path]:
        if architecture not in written:
            ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
            networks(architecture).save_weights(ours / f"{architecture}_notop.weights.h5")
            save_as_keras(networks(architecture), theirs / ARCHITECTURES[architecture].keras_weights)
            written[architecture] = ours, theirs
        return written[architecture]

    return folders


@pytest.fixture
def download(monkeypatch):
    """Replaces Keras's download by `answer(file name)`."""

    def replace(answer):
        monkeypatch.setattr(file_utils, "get_file", lambda name, *_, **__: answer(name))

    return replace


@pytest.mark.parametrize("architecture", ALL)
def test_a_photo_is_prepared_as_the_architecture_was_trained(networks, architecture):
    network = networks(architecture)
    module = importlib.import_module(f"keras.applications.{ARCHITECTURES[architecture].module}")
    pictures = [photo(seed)[0] for seed in range(2)]
    embedded = build_embedder(network, architecture, SIDE).embed(tf.constant(list(map(framed, pictures))))["embedding"]
    pixels = np.stack(pictures).astype(np.float32)
    wanted = network(module.preprocess_input(pixels.copy()), training=False).numpy()
    assert distance(embedded, wanted) < 1e-3
    assert distance(wanted[::-1], wanted) > 0.01
    if architecture in CHEAP:
        assert distance(network(pixels, training=False), wanted) > 0.1


def test_a_photo_of_the_right_size_keeps_its_pixels_inside_the_border_and_any_other_is_averaged_down():
    pixels, _ = photo(0)
    data = framed(pixels)
    np.testing.assert_array_equal(decode_photos(tf.constant([data]), SIDE)[0], pixels)
    _, large = photo(1, (SIDE * 9, SIDE * 6))
    small = decode_photos(tf.constant([data, large]), SIDE).numpy()
    assert small.shape == (2, SIDE, SIDE, 3)
    # Noise reduced to an ninth and a sixth has nearly no contrast left; without antialiasing it would keep all of it.
    assert small[0].std() > 60
    assert small[1].std() < 20
    assert small[1].mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("size", [(3 * 82, 82), (82, 3 * 82)], ids=["wide", "high"])
def test_of_a_long_photo_the_central_square_is_seen(size):
    pixels, _ = photo(0, size)
    square = np.array(Image.open(io.BytesIO(framed(photo(1)[0]))))
    top, left = (size[1] - len(square)) // 2, (size[0] - len(square)) // 2
    pixels[top : top + len(square), left : left + len(square)] = square
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_photos(tf.constant([buffer.getvalue()]), SIDE)[0], photo(1)[0])


def test_jpeg_and_png_of_the_same_picture_are_decoded_alike():
    smooth = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    files = []
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        smooth.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
        files.append(buffer.getvalue())
    png, jpeg = decode_photos(tf.constant(files), SIDE).numpy()
    assert np.abs(png - jpeg).max() <= 4


@pytest.mark.parametrize("architecture", CHEAP)
def test_random_weights_are_the_same_for_the_same_seed_and_differ_for_another(networks, architecture):
    assert_same_weights(networks(architecture), build_network(architecture, "random", SIDE, seed=3))
    other = build_network(architecture, "random", SIDE, seed=4)
    kernels = [v.numpy() for v in other.variables if "kernel" in v.path]
    before = [v.numpy() for v in networks(architecture).variables if "kernel" in v.path]
    assert not any(np.array_equal(a, b) for a, b in zip(kernels, before, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_found_under_our_name_first_and_then_under_that_of_keras(architecture, tmp_path):
    ours, theirs = weight_file_names(architecture)
    (tmp_path / theirs).write_bytes(b"")
    assert find_weights(architecture, str(tmp_path)) == str(tmp_path / theirs)
    (tmp_path / ours).write_bytes(b"")
    assert find_weights(architecture, str(tmp_path)) == str(tmp_path / ours)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_missing_weights_are_named_by_both_file_names(architecture, tmp_path):
    for other in set(ARCHITECTURES) - {architecture}:
        (tmp_path / weight_file_names(other)[0]).write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        find_weights(architecture, str(tmp_path))
    for part in (str(tmp_path), architecture, *weight_file_names(architecture)):
        assert part in str(caught.value)


def test_a_folder_of_weights_for_a_backbone_whose_weights_shall_be_random_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="not used with weights=random"):
        weights_source("xception", "random", str(tmp_path))
    assert weights_source("xception", "random", "") == "random"


@pytest.mark.parametrize("whose", [0, 1], ids=["ours", "keras"])
@pytest.mark.parametrize("architecture", CHEAP)
def test_a_weights_file_gives_its_weights_whatever_the_seed(networks, weights, architecture, whose):
    path = find_weights(architecture, str(weights(architecture)[whose]))
    assert_same_weights(build_network(architecture, path, SIDE, seed=9), networks(architecture))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("xception_notop.weights.h5", "of another architecture"),
        (ARCHITECTURES["xception"].keras_weights, "of another architecture"),
        ("xception_notop.weights.h5", "in the other format"),
        ("xception_notop.weights.h5", "cut short"),
        ("xception_notop.weights.h5", "text"),
        (ARCHITECTURES["xception"].keras_weights, "text"),
    ],
)
def test_a_file_that_does_not_hold_the_weights_is_named(weights, tmp_path, name, content):
    path = tmp_path / name
    if content == "of another architecture":
        path.write_bytes(next(weights("resnet50")[not name.endswith(".weights.h5")].iterdir()).read_bytes())
    elif content == "in the other format":
        path.write_bytes(next(weights("xception")[1].iterdir()).read_bytes())
    elif content == "cut short":
        path.write_bytes(next(weights("xception")[0].iterdir()).read_bytes()[:1_000_000])
    else:
        path.write_text("404: not found")
    with pytest.raises(WeightsError) as caught:
        build_network("xception", str(path), SIDE, seed=0)
    assert str(caught.value).startswith(f"{path}: not a weights file of xception")


@pytest.mark.parametrize("architecture", CHEAP)
def test_without_internet_the_message_says_how_to_bring_the_weights(download, architecture):
    def fail(name):
        raise Exception(
            f"URL fetch failure on https://storage.googleapis.com/{name}: None -- Name or service not known"
        )

    download(fail)
    with pytest.raises(WeightsError) as caught:
        build_network(architecture, "imagenet", SIDE, seed=0)
    for part in (architecture, "URL fetch failure", "--set weights_dir=", *weight_file_names(architecture)):
        assert part in str(caught.value)


def test_another_failure_than_the_download_is_not_taken_for_it(download):
    def fail(name):
        raise MemoryError("no room")

    download(fail)
    with pytest.raises(MemoryError, match="no room"):
        build_network("resnet50", "imagenet", SIDE, seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_from_a_folder_give_the_embeddings_of_the_same_weights_downloaded(
    download, monkeypatch, tmp_path, architecture
):
    if architecture == "efficientnetb7":
        smallest = ARCHITECTURES[architecture]._replace(builder="EfficientNetB0")
        monkeypatch.setitem(ARCHITECTURES, architecture, smallest)
    path = tmp_path / ARCHITECTURES[architecture].keras_weights
    save_as_keras(build_network(architecture, "random", SIDE, seed=3), path)
    download(lambda name: str(path))
    pixels = tf.constant(photo(0)[0][None], tf.float32)
    downloaded = build_network(architecture, "imagenet", SIDE, seed=0)(pixels, training=False)
    brought = build_network(architecture, str(path), SIDE, seed=0)(pixels, training=False)
    assert distance(brought, downloaded) < 1e-3


@pytest.fixture(scope="module")
def written(weights, tmp_path_factory):
    """What the component writes for Xception from a weights file, and its artifact."""
    model = Model()
    model.uri = str(tmp_path_factory.mktemp("backbone"))
    Backbone.test_call(
        model=model,
        architecture="xception",
        weights="imagenet",
        weights_dir=str(weights("xception")[0]),
        weights_digest="",
        image_size=SIDE,
        seed=0,
        code_digest="",
    )
    return model, Path(model.uri) / "Format-Serving"


def test_the_saved_model_holds_each_variable_once(written, networks):
    _, path = written
    size = sum(variable.numpy().nbytes for variable in networks("xception").variables)
    data = sum(file.stat().st_size for file in (path / "variables").glob("variables.data-*"))
    assert size <= data < 1.01 * size


def test_the_saved_model_embeds_photos_of_any_size_as_the_network_does(written, networks):
    _, path = written
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    files = tf.constant([photo(0)[1], photo(1, (100, 40))[1], photo(2, (8, 8))[1]])
    embedded = signature(image_bytes=files)["embedding"]
    wanted = build_embedder(networks("xception"), "xception", SIDE).embed(files)["embedding"]
    assert embedded.shape == (3, 2048)
    assert distance(embedded, wanted) < 1e-3


def test_the_record_says_what_the_backbone_is_made_of(written, networks):
    model, path = written
    record = json.loads((path / "assets.extra" / "backbone.json").read_text())
    digest = record.pop("weights_digest")
    assert record == {
        "architecture": "xception",
        "weights": "imagenet",
        "image_size": SIDE,
        "embedding_size": 2048,
        "parameters": networks("xception").count_params(),
    }
    assert len(digest) == 64
    assert model.get_string_custom_property("weights_digest") == digest
    assert model.get_string_custom_property("architecture") == "xception"
