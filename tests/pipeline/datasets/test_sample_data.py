"""Synthetic photos are reproducible; a model can learn their breeds, but not perfectly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import sample_data
from pipeline.datasets.sample_data import BREEDS, draw_photo, write_sample_data


def contents(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file in root."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def thumbnails(numbers: range, breeds: int) -> tuple[np.ndarray, np.ndarray]:
    """16x16 RGB thumbnails (n, 768) of photos and their breed numbers (n,)."""
    labels = np.repeat(np.arange(breeds), len(numbers))
    photos = [draw_photo(breed, number) for breed in BREEDS[:breeds] for number in numbers]
    small = [np.asarray(photo.resize((16, 16), Image.Resampling.BOX), np.float32).ravel() for photo in photos]
    return np.stack(small), labels


def test_photos_of_every_breed_can_be_generated_and_breed_names_are_unique():
    assert len(BREEDS) >= 8
    assert len({breed.name for breed in BREEDS}) == len({breed.slug for breed in BREEDS}) == len(BREEDS)
    assert any(" " in breed.name for breed in BREEDS)
    for breed in BREEDS:
        photo = draw_photo(breed, "portrait")
        assert photo.mode == "RGB"
        assert np.asarray(photo).std() > 8  # not one flat color


def test_more_photos_include_the_earlier_ones_unchanged(tmp_path):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    paths = write_sample_data(a, breeds=2, photos=4, seed=5)
    few = contents(a)
    assert sorted(path.relative_to(a).as_posix() for path in paths) == list(few)
    assert "Harbor Grey/harbor_grey_0001.jpg" in few

    write_sample_data(b, breeds=3, photos=7, seed=5)  # more breeds and photos, in another folder
    many = contents(b)
    assert len(many) == len(set(many.values())) == 21
    assert {name: many[name] for name in few} == few

    write_sample_data(a, breeds=3, photos=7, seed=5)  # more breeds and photos, in the same folder
    assert contents(a) == many

    write_sample_data(c, breeds=3, photos=3, offset=4, seed=5)  # only numbers 5 to 7
    assert contents(c) == {name: many[name] for name in many if name[-8:-4] > "0004"}


def test_a_different_seed_generates_different_photos():
    assert draw_photo(BREEDS[0], 1).tobytes() == draw_photo(BREEDS[0], "1").tobytes()
    assert draw_photo(BREEDS[0], 1).tobytes() != draw_photo(BREEDS[0], 2).tobytes()


def test_a_separate_process_generates_the_same_bytes(tmp_path):
    """Python's hash() differs between processes, so nothing may depend on it."""
    write_sample_data(tmp_path / "here", breeds=2, photos=2)
    code = "from pipeline.datasets.sample_data import *; write_sample_data(Path(sys.argv[1]), breeds=2, photos=2)"
    command = [sys.executable, "-c", f"import sys; {code}", str(tmp_path / "there")]
    root = Path(sample_data.__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONHASHSEED": "77"})
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_second_call_generates_nothing(tmp_path, monkeypatch):
    first = write_sample_data(tmp_path, breeds=2, photos=8)
    before = contents(tmp_path)
    monkeypatch.setattr(sample_data, "draw_photo", None)  # generation would fail
    assert write_sample_data(tmp_path, breeds=2, photos=8) == first
    assert contents(tmp_path) == before


def test_other_files_are_never_changed(tmp_path):
    other = tmp_path / "Harbor Grey" / "harbor_grey_0002.jpg"
    other.parent.mkdir()
    other.write_bytes(b"my own cat")
    with pytest.raises(FileExistsError, match="harbor_grey_0002"):
        write_sample_data(tmp_path, breeds=2, photos=2)
    assert other.read_bytes() == b"my own cat"

    write_sample_data(tmp_path / "new", breeds=2, photos=2, seed=1)
    before = contents(tmp_path / "new")
    with pytest.raises(FileExistsError, match="seed 11"):  # the files are photos of seed 1
        write_sample_data(tmp_path / "new", breeds=2, photos=2, seed=11)
    assert contents(tmp_path / "new") == before


def test_photos_differ_in_size_shape_format_and_quality(tmp_path):
    paths = write_sample_data(tmp_path, breeds=2, photos=26)
    images = [Image.open(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        image.load()
        assert 160 <= max(image.size) <= 360
        assert image.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    assert len({image.size for image in images}) > 26
    assert {np.sign(image.width - image.height) for image in images} == {-1, 0, 1}
    assert sum(path.suffix == ".png" for path in paths) == 4
    tables = {tuple(image.quantization[0]) for image in images if image.format == "JPEG"}
    assert len(tables) > 10


def test_breeds_can_be_learned_but_not_by_color_alone():
    breeds = 6
    x_train, y_train = thumbnails(range(30), breeds)
    x_test, y_test = thumbnails(range(30, 50), breeds)
    centroids = np.stack([x_train[y_train == label].mean(axis=0) for label in range(breeds)])
    predictions = ((x_test[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    accuracy = (predictions == y_test).mean()
    assert 0.3 < accuracy < 0.9, accuracy  # chance is 0.17
    grays = np.isin(y_test, [0, 2])  # Harbor Grey and Fogbell, which look alike
    assert (predictions[grays] == y_test[grays]).mean() < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"breeds": 1}, f"breeds must be 2 to {len(BREEDS)}, not 1"),
        ({"breeds": len(BREEDS) + 1}, f"breeds must be 2 to {len(BREEDS)}, not {len(BREEDS) + 1}"),
        ({"photos": 0}, "photos must be at least 1, not 0"),
        ({"offset": -1}, "offset must be at least 0, not -1"),
    ],
)
def test_an_invalid_argument_is_rejected_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_sample_data(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_photos_at_night_are_dark_and_bluish(tmp_path):
    day = draw_photo(BREEDS[0], "night")
    night = draw_photo(BREEDS[0], "night", night=True)
    assert night.size == day.size
    red, _, blue = np.asarray(night, float).mean(axis=(0, 1)) / np.asarray(day, float).mean(axis=(0, 1))
    assert red < 0.35
    assert blue > 1.5 * red
    write_sample_data(tmp_path, breeds=2, photos=1)
    with pytest.raises(FileExistsError):
        write_sample_data(tmp_path, breeds=2, photos=1, night=True)
