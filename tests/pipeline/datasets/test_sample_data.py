"""The imaginary cats: the same bytes every time, and breeds that can be learnt though not perfectly."""

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
    """Every file below root by its relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def thumbnails(numbers: range, breeds: int) -> tuple[np.ndarray, np.ndarray]:
    """16x16 RGB thumbnails (n, 768) of some photos and their breed numbers (n,)."""
    labels = np.repeat(np.arange(breeds), len(numbers))
    photos = [draw_photo(breed, number) for breed in BREEDS[:breeds] for number in numbers]
    small = [np.asarray(photo.resize((16, 16), Image.Resampling.BOX), np.float32).ravel() for photo in photos]
    return np.stack(small), labels


def test_every_breed_can_be_drawn_and_has_a_name_of_its_own():
    assert len(BREEDS) >= 8
    assert len({breed.name for breed in BREEDS}) == len({breed.slug for breed in BREEDS}) == len(BREEDS)
    assert any(" " in breed.name for breed in BREEDS)
    for breed in BREEDS:
        photo = draw_photo(breed, "portrait")
        assert photo.mode == "RGB"
        assert np.asarray(photo).std() > 8  # not one flat colour


def test_asking_for_more_keeps_the_earlier_bytes(tmp_path):
    ticks = []
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    paths = write_sample_data(a, breeds=2, photos=4, seed=5, progress=lambda *at: ticks.append(at))
    few = contents(a)
    assert ticks == [(done, 8) for done in range(1, 9)]
    assert sorted(path.relative_to(a).as_posix() for path in paths) == list(few)
    assert "Harbor Grey/harbor_grey_0001.jpg" in few

    write_sample_data(b, breeds=3, photos=7, seed=5)  # more of both at once, in another folder
    many = contents(b)
    assert len(many) == len(set(many.values())) == 21
    assert {name: many[name] for name in few} == few

    write_sample_data(a, breeds=3, photos=7, seed=5)  # or grown in place
    assert contents(a) == many

    write_sample_data(c, breeds=3, photos=3, first=4, seed=5)  # numbers 5 to 7 alone
    assert contents(c) == {name: many[name] for name in many if name[-8:-4] > "0004"}


def test_another_seed_gives_other_photos():
    assert draw_photo(BREEDS[0], 1).tobytes() == draw_photo(BREEDS[0], "1").tobytes()
    assert draw_photo(BREEDS[0], 1).tobytes() != draw_photo(BREEDS[0], 2).tobytes()


def test_another_process_draws_the_same_bytes(tmp_path):
    """Python's hash() differs from process to process; nothing may depend on it."""
    write_sample_data(tmp_path / "here", breeds=2, photos=2)
    code = "from pipeline.datasets.sample_data import *; write_sample_data(Path(sys.argv[1]), breeds=2, photos=2)"
    command = [sys.executable, "-c", f"import sys; {code}", str(tmp_path / "there")]
    root = Path(sample_data.__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONHASHSEED": "77"})
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_second_call_draws_nothing(tmp_path, monkeypatch):
    first = write_sample_data(tmp_path, breeds=2, photos=8)
    before = contents(tmp_path)
    monkeypatch.setattr(sample_data, "draw_photo", None)  # drawing would fail
    assert write_sample_data(tmp_path, breeds=2, photos=8) == first
    assert contents(tmp_path) == before


def test_files_of_others_are_never_touched(tmp_path):
    own = tmp_path / "Harbor Grey" / "harbor_grey_0002.jpg"
    own.parent.mkdir()
    own.write_bytes(b"my own cat")
    with pytest.raises(FileExistsError, match="harbor_grey_0002"):
        write_sample_data(tmp_path, breeds=2, photos=2)
    assert own.read_bytes() == b"my own cat"

    write_sample_data(tmp_path / "new", breeds=2, photos=2, seed=1)
    before = contents(tmp_path / "new")
    with pytest.raises(FileExistsError, match="seed 11"):  # would otherwise pass off seed 1 as seed 11
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


def test_breeds_can_be_learnt_but_not_by_colour_alone():
    breeds = 6
    x, y = thumbnails(range(30), breeds)
    seen, labels = thumbnails(range(30, 50), breeds)
    centroids = np.stack([x[y == label].mean(axis=0) for label in range(breeds)])
    guesses = ((seen[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    accuracy = (guesses == labels).mean()
    assert 0.3 < accuracy < 0.9, accuracy  # chance is 0.17
    greys = np.isin(labels, [0, 2])  # Harbor Grey and Fogbell, the look-alikes
    assert (guesses[greys] == labels[greys]).mean() < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"breeds": 1}, f"breeds must be 2 to {len(BREEDS)}, not 1"),
        ({"breeds": len(BREEDS) + 1}, f"breeds must be 2 to {len(BREEDS)}, not {len(BREEDS) + 1}"),
        ({"photos": 0}, "photos must be at least 1, not 0"),
        ({"first": -1}, "first must be at least 0, not -1"),
    ],
)
def test_impossible_arguments_are_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_sample_data(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
