"""The quality benchmark compares all candidates with the baseline on the same photos; near-duplicates stay together."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import Photos, split_into_folds

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quality.py"
COLUMNS = ["accuracy", "NLL", "ECE", "points", "s.e.", "lower", "covered", "breeds", "passes", "ms"]
ROWS = {
    "baseline": 1,
    "deep, last block": 1,
    "deep, all blocks": 1,
    "deep, tuned": 1,
    "flat, tuned": 1,
    "ensemble, last block": 2,
    "ensemble, all blocks": 2,
    "ensemble, tuned": 2,
}


@pytest.fixture
def models(tmp_path) -> Path:
    """Folder with two small Keras models with random weights: deep.keras with layers b1 and b2, flat.keras with b1."""
    from components.keras_config import keras

    keras.utils.set_random_seed(0)
    for name, blocks in (("deep", 2), ("flat", 1)):
        outputs = inputs = keras.Input([32, 32, 3])
        for number in range(blocks):
            outputs = keras.layers.Conv2D(16, 3, 2, activation="relu", name=f"b{number + 1}")(outputs)
        keras.Model(inputs, outputs).save(tmp_path / f"{name}.keras")
    return tmp_path


@pytest.mark.slow
def test_quality_prints_a_row_for_the_baseline_and_each_candidate(models, generate_photos):
    data = generate_photos(breeds=3, photos=55)
    copied = next(data.glob("*/*.jpg"))
    Image.open(copied).save(copied.with_name("copy.jpg"), quality=60)
    backbones = [f"deep={models}/deep.keras:b1,b2", f"flat={models}/flat.keras"]
    command = [sys.executable, SCRIPT, "--data", data, "--folds", "3", "--repeats", "2", "--backbones", *backbones]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    photos, heading, *lines = done.stdout.splitlines()
    assert photos == "166 photos of 3 breeds, 3 folds, 2 divisions into folds"
    assert "166 photos in 165 groups of near-duplicates" in done.stderr
    assert heading.split() == COLUMNS
    cells = [re.split(r" +(?=[-+\d])", line) for line in lines]
    rows = {name: dict(zip(COLUMNS, map(float, values), strict=True)) for name, *values in cells}
    assert {name: row["passes"] for name, row in rows.items()} == ROWS
    for row in rows.values():
        assert row["points"] == pytest.approx(100 * (row["accuracy"] - rows["baseline"]["accuracy"]), abs=0.2)
        assert row["lower"] == pytest.approx(row["points"] - 1.96 * row["s.e."], abs=0.2)
        assert 0.85 < row["covered"] <= 1 <= row["breeds"] <= 3
    tuned = rows["ensemble, tuned"]
    assert tuned["accuracy"] > 0.4
    assert tuned["NLL"] < np.log(3)
    assert tuned["ms"] == pytest.approx(rows["deep, tuned"]["ms"] + rows["flat, tuned"]["ms"], abs=0.2)
    assert len(re.findall("^division . of 2, fold . of 3$", done.stderr, re.MULTILINE)) == 6


def test_folds_keep_groups_together_and_have_the_shares_of_the_settings():
    labels = np.repeat(np.arange(4), 50)
    groups = [b"%d" % (number // 2 if number % 50 < 20 else number) for number in range(200)]
    photos = Photos([b""] * 200, list("abcd"), labels, [b"%d" % n for n in range(200)], groups)
    splits = list(split_into_folds(photos, folds=5, eval_share=0.25, seed=0))
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(200))
    for split in splits:
        assert sorted(np.concatenate(split)) == list(range(200))
        parts = [{groups[row] for row in rows} for rows in split]
        assert sum(map(len, parts)) == len(set(groups))
        for part, share in zip(split, (0.6, 0.2, 0.2), strict=True):
            assert list(part) == sorted(part)
            np.testing.assert_allclose(np.bincount(labels[part]), 50 * share, atol=4)
    other = next(split_into_folds(photos, folds=5, eval_share=0.25, seed=1))
    assert set(other.test) != set(splits[0].test)
