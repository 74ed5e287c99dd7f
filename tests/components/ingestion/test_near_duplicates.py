"""FindDuplicates: copies are found by their pixels, and the result does not depend on the order of photos."""

import io
import json
import tempfile
from pathlib import Path

import apache_beam as beam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from components.ingestion.near_duplicates import KINDS, FindDuplicates, perceptual_hash
from pipeline.datasets.sample_data import BREEDS, draw_photo
from pipeline.settings import load

MAX_DISTANCE = 48
COPIES = {
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "quality 30": lambda image: jpeg(image, 30),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "one percent cropped": lambda image: image.crop((2, 2, image.width - 2, image.height - 2)),
}


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def image_hash(image: Image.Image) -> bytes:
    return perceptual_hash(image.convert("L"))


def distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def find_duplicates(photos: list[tuple]) -> list[dict]:
    """Run FindDuplicates on photos given as (content hash, path, breed, rank of the split, perceptual hash)."""
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(argv=load("demo").beam.pipeline_args()) as pipeline:
            keyed = pipeline | beam.Create([(photo[0], photo[1:]) for photo in photos])
            _ = (
                keyed
                | FindDuplicates(MAX_DISTANCE)
                | beam.Map(json.dumps)
                | beam.io.WriteToText(f"{folder}/duplicates")
            )
        rows = [json.loads(line) for path in Path(folder).iterdir() for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["path"])


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_has_a_hash_close_to_that_of_its_original(copy):
    for breed in BREEDS[:5]:
        image = draw_photo(breed, "copied")
        assert distance(image_hash(image), image_hash(COPIES[copy](image))) <= MAX_DISTANCE


def test_different_photos_have_distant_hashes():
    hashes = [image_hash(draw_photo(BREEDS[0], str(number))) for number in range(40)]
    nearest = min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i])
    assert nearest > MAX_DISTANCE + 12


A, B = bytes(32), bytes([0, 7, *[0] * 30])  # 3 bits apart
DISTANT = bytes([255] * 32)


@pytest.mark.parametrize(
    ("photos", "duplicates"),
    [
        ([("x", "1", "Manx", 0, A), ("y", "2", "Manx", 0, DISTANT)], {}),
        ([("x", "2", "Manx", 0, A), ("x", "1", "Manx", 0, A)], {"2": ("duplicate", "1")}),
        ([("x", "1", "Manx", 0, A), ("y", "2", "Manx", 0, B)], {}),
        ([("x", "1", "Manx", 2, A), ("y", "2", "Manx", 0, B)], {"1": ("near_duplicate", "2")}),
        ([("x", "1", "Manx", 1, A), ("y", "2", "Manx", 2, B)], {"2": ("near_duplicate", "1")}),
        (
            [("x", "1", "Manx", 0, A), ("x", "2", "Bombay", 0, A)],
            {"1": ("label_conflict", "2"), "2": ("label_conflict", "1")},
        ),
        (
            [("x", "1", "Manx", 0, A), ("y", "2", "Bombay", 2, B)],
            {"1": ("label_conflict", "2"), "2": ("label_conflict", "1")},
        ),
        (
            [("x", "1", "Manx", 0, A), ("x", "2", "Manx", 0, A), ("y", "3", "Bombay", 0, B)],
            {"1": ("label_conflict", "3"), "2": ("duplicate", "1"), "3": ("label_conflict", "1")},
        ),
    ],
    ids=[
        "different",
        "copy",
        "near-duplicates in one split",
        "near-duplicate in train",
        "near-duplicate in eval",
        "copy in two breeds",
        "near-duplicate in two breeds",
        "copies and near-duplicate in two breeds",
    ],
)
def test_each_rule_gives_the_expected_kind(photos, duplicates):
    assert {row["path"]: (row["kind"], row["like"]) for row in find_duplicates(photos)} == duplicates
    assert find_duplicates(photos[::-1]) == find_duplicates(photos)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from(["Manx", "Bombay"]), st.sampled_from([0, 0, 3, 5, 900])),
        max_size=12,
    )
)
def test_the_result_equals_that_of_comparing_all_pairs(generated):
    """The pixels determine hash and split, as in real data."""

    def synthetic_hash(pixels: str, shift: int) -> bytes:
        return bytes(["xyz".index(pixels) * 85] * 30 + [shift % 256, shift // 256])

    photos = [
        (f"{p}{s}", str(i), breed, ("xyz".index(p) + s) % 3, synthetic_hash(p, s))
        for i, (p, breed, s) in enumerate(generated)
    ]
    expected = {}
    for content, path, breed, rank, bits in photos:
        reasons = set()
        for other_content, other, other_breed, other_rank, other_bits in photos:
            near = distance(bits, other_bits) <= MAX_DISTANCE
            if near and breed != other_breed:
                reasons.add("label_conflict")
            if near and breed == other_breed and rank > other_rank:
                reasons.add("near_duplicate")
            if content == other_content and breed == other_breed and other < path:
                reasons.add("duplicate")
        if reasons:
            expected[path] = reasons
    kinds = {row["path"]: row["kind"] for row in find_duplicates(photos)}
    assert kinds.keys() == expected.keys()
    for path, kind in kinds.items():
        assert kind in expected[path]
        if "duplicate" not in expected[path]:
            assert kind == min(expected[path], key=KINDS.index)
