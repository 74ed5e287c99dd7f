"""FindDuplicates: copies are found and grouped by their pixels; the result does not depend on the order of photos."""

import io
import json
import random
import tempfile
from itertools import combinations
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from components.ingestion import near_duplicates
from components.ingestion.near_duplicates import KINDS, LOWEST_RANK, FindDuplicates
from pipeline.datasets.sample_data import BREEDS, draw_photo
from pipeline.settings import load
from serving.perceptual_hash import perceptual_hash

MAX_DISTANCE = 48
COPIES = {
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "quality 30": lambda image: jpeg(image, 30),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "gray": lambda image: image.convert("L").convert("RGB"),
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


def find_duplicates(photos: list[tuple]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Run FindDuplicates on photos given as (content hash, path, breed, rank of the split, perceptual hash).

    Returns:
        Path of each excluded photo -> kind and like; path of each other photo -> near-duplicate group.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(argv=load("demo").beam.pipeline_args()) as pipeline:
            keyed = pipeline | beam.Create([(photo[0], photo[1:]) for photo in photos])
            found = keyed | FindDuplicates(MAX_DISTANCE)
            for name, rows in found._asdict().items():
                lines = rows | f"Lines[{name}]" >> beam.Map(json.dumps)
                _ = lines | f"Write[{name}]" >> beam.io.WriteToText(f"{folder}/{name}")
        for name in found._fields:
            lines = [line for path in Path(folder).glob(f"{name}*") for line in path.read_text().splitlines()]
            results[name] = dict(map(json.loads, lines))
            assert len(results[name]) == len(lines)
    kept = {path: content for content, path, *_ in photos if path not in results["excluded"]}
    assert results["groups"].keys() <= kept.keys()
    return results["excluded"], kept | results["groups"]


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_has_a_hash_close_to_that_of_its_original(copy):
    for breed in BREEDS[:5]:
        image = draw_photo(breed, "copied")
        assert distance(image_hash(image), image_hash(COPIES[copy](image))) <= MAX_DISTANCE


def test_different_photos_have_distant_hashes():
    hashes = [image_hash(draw_photo(BREEDS[0], str(number))) for number in range(40)]
    nearest = min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i])
    assert nearest > MAX_DISTANCE + 12


def flipped(bits: bytes, *positions: int) -> bytes:
    """Hash with other values of all bits in the bytes at `positions`."""
    return bytes(byte ^ 255 if position in positions else byte for position, byte in enumerate(bits))


A, B = bytes(32), bytes([0, 7, *[0] * 30])  # 3 bits apart
DISTANT = bytes([255] * 32)
# Each hash is 40 bits from the next one and at least 80 bits from the others. All agree in all bands.
CHAIN = [A, flipped(A, *range(16, 21)), flipped(A, *range(16, 26)), flipped(A, *range(16, 31))]
# Each hash is 32 bits from the next one. The first and the last agree in no band, and with the other one in four.
CHAIN_OF_BANDS = [A, flipped(A, 0, 2, 4, 6), flipped(A, 0, 2, 4, 6, 8, 10, 12, 14)]
# Photos, (kind, like) of each excluded photo, and group of each other photo.
CASES = {
    "different": ([("y", "1", "Manx", 0, A), ("x", "2", "Manx", 0, DISTANT)], {}, {"1": "y", "2": "x"}),
    "copy": ([("x", "2", "Manx", 0, A), ("x", "1", "Manx", 0, A)], {"2": ("duplicate", "1")}, {"1": "x"}),
    "near-duplicates in one split": (
        [("y", "1", "Manx", 0, A), ("x", "2", "Manx", 0, B)],
        {},
        {"1": "x", "2": "x"},
    ),
    "near-duplicate in train": (
        [("x", "1", "Manx", 2, A), ("y", "2", "Manx", 0, B)],
        {"1": ("near_duplicate", "2")},
        {"2": "y"},
    ),
    "near-duplicate in eval": (
        [("x", "1", "Manx", 1, A), ("y", "2", "Manx", 2, B)],
        {"2": ("near_duplicate", "1")},
        {"1": "x"},
    ),
    "copy in two breeds": (
        [("x", "1", "Manx", 0, A), ("x", "2", "Bombay", 0, A)],
        {"1": ("label_conflict", "2"), "2": ("label_conflict", "1")},
        {},
    ),
    "near-duplicate in two breeds": (
        [("x", "1", "Manx", 0, A), ("y", "2", "Bombay", 2, B)],
        {"1": ("label_conflict", "2"), "2": ("label_conflict", "1")},
        {},
    ),
    "copies and near-duplicate in two breeds": (
        [("x", "1", "Manx", 0, A), ("x", "2", "Manx", 0, A), ("y", "3", "Bombay", 0, B)],
        {"1": ("label_conflict", "3"), "2": ("duplicate", "1"), "3": ("label_conflict", "1")},
        {},
    ),
    "uncertain capture like a test photo": (
        [("x", "1", "Manx", 2, A), ("y", "2", "Manx", LOWEST_RANK, B)],
        {"2": ("near_duplicate", "1")},
        {"1": "x"},
    ),
    "uncertain capture like a train photo": (
        [("x", "1", "Manx", 0, A), ("y", "2", "Manx", LOWEST_RANK, B)],
        {},
        {"1": "x", "2": "x"},
    ),
    "uncertain capture with the pixels of a test photo": (
        [("x", "2", "Manx", 2, A), ("x", "1", "Manx", LOWEST_RANK, A)],
        {"1": ("duplicate", "2")},
        {"2": "x"},
    ),
    "uncertain capture like a photo of another breed": (
        [("x", "1", "Manx", 2, A), ("y", "2", "Bombay", LOWEST_RANK, B)],
        {"2": ("label_conflict", "1")},
        {"1": "x"},
    ),
    "uncertain capture with the pixels of another breed": (
        [("x", "2", "Manx", 2, A), ("x", "1", "Bombay", LOWEST_RANK, A)],
        {"1": ("label_conflict", "2")},
        {"2": "x"},
    ),
    "uncertain captures that look alike": (
        [("y", "1", "Manx", LOWEST_RANK, A), ("x", "2", "Manx", LOWEST_RANK, B)],
        {},
        {"1": "x", "2": "x"},
    ),
    "uncertain captures of two breeds": (
        [("x", "1", "Manx", LOWEST_RANK, A), ("y", "2", "Bombay", LOWEST_RANK, B)],
        {"1": ("label_conflict", "2"), "2": ("label_conflict", "1")},
        {},
    ),
    "chain": (
        [(c, c, "Manx", 0, bits) for c, bits in zip("yzxw", CHAIN, strict=True)],
        {},
        dict.fromkeys("wxyz", "w"),
    ),
    "chain across bands": (
        [(c, c, "Manx", 0, bits) for c, bits in zip("yzx", CHAIN_OF_BANDS, strict=True)],
        {},
        dict.fromkeys("xyz", "x"),
    ),
    "chain through an excluded eval photo": (
        [("y", "1", "Manx", 0, CHAIN[0]), ("x", "2", "Manx", 1, CHAIN[1]), ("z", "3", "Manx", 1, CHAIN[2])],
        {"2": ("near_duplicate", "1")},
        {"1": "y", "3": "y"},
    ),
    "chain through a photo of two breeds": (
        [(c, c, "Manx", 0, bits) for c, bits in zip("yxz", CHAIN_OF_BANDS, strict=True)]
        + [("w", "w", "Bombay", 0, flipped(CHAIN_OF_BANDS[1], 17, 19, 21))],
        {"x": ("label_conflict", "w"), "w": ("label_conflict", "x")},
        {"y": "y", "z": "y"},
    ),
    "chain of two breeds": (
        [
            (c, c, breed, 0, bits)
            for c, breed, bits in zip("wxyz", ["Manx", "Manx", "Bombay", "Bombay"], CHAIN, strict=True)
        ],
        {"x": ("label_conflict", "y"), "y": ("label_conflict", "x")},
        {"w": "w", "z": "z"},
    ),
}


@pytest.fixture(scope="module")
def found_in_cases():
    """Results for the photos of all cases together, in two orders; photos of different cases have distant hashes."""
    photos = []
    for number, (case, (rows, _, _)) in enumerate(CASES.items()):
        case_bits = random.Random(number).randbytes(32)
        for content, path, breed, rank, bits in rows:
            distinct_bits = bytes(a ^ b for a, b in zip(bits, case_bits, strict=True))
            photos.append((f"{case}/{content}", f"{case}/{path}", breed, rank, distinct_bits))
    return find_duplicates(photos), find_duplicates(photos[::-1])


@pytest.mark.parametrize("case", CASES)
def test_each_case_gives_the_expected_kinds_and_groups(found_in_cases, case):
    (excluded, groups), _ = found_in_cases
    _, expected_kinds, expected_groups = CASES[case]
    kinds = {path: (row["kind"], row["like"]) for path, row in excluded.items() if path.startswith(f"{case}/")}
    assert kinds == {f"{case}/{path}": (kind, f"{case}/{like}") for path, (kind, like) in expected_kinds.items()}
    groups = {path: group for path, group in groups.items() if path.startswith(f"{case}/")}
    assert groups == {f"{case}/{path}": f"{case}/{group}" for path, group in expected_groups.items()}


def test_the_order_of_photos_does_not_change_the_result(found_in_cases):
    assert found_in_cases[0] == found_in_cases[1]


def test_a_long_chain_in_random_order_is_one_group():
    generator, bits, photos = random.Random(0), 0, []
    for number in range(20):
        bits ^= sum(1 << bit for bit in generator.sample(range(128), 40))
        photos.append((f"{number:02}", f"{generator.random()}", "Manx", 0, bits.to_bytes(32)))
    assert sum(distance(one[4], other[4]) <= MAX_DISTANCE for one in photos for other in photos) < 100
    assert set(find_duplicates(photos)[1].values()) == {"00"}


@pytest.mark.parametrize("hashes", ["evenly distributed", "equal"])
def test_the_number_of_comparisons_per_photo_has_a_bound(hashes):
    def comparisons_per_photo(photos: int) -> float:
        """Comparisons of photos that agree in the first band."""
        random_bytes = np.random.default_rng(0).integers(0, 256 if hashes == "evenly distributed" else 1, (photos, 8))
        bands = np.column_stack([np.zeros(photos), random_bytes[:, 1:]]).astype(np.uint8)
        return sum(len(block) ** 2 for block in near_duplicates._blocks(bands, 0)) / photos

    assert comparisons_per_photo(1000) == 1000
    assert comparisons_per_photo(20_000) < 2100 + 7 * 20_000 / 256
    assert comparisons_per_photo(200_000) < 8 * 2100


def test_copies_are_found_if_each_band_is_common_to_many_photos(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK_SIZE", 8)
    generator = random.Random(0)
    # The even ones of the first 16 bytes are the bands; here each band has one of 16 values, in about 25 photos.
    rows = [[byte % 16 if n < 16 else byte for n, byte in enumerate(generator.randbytes(32))] for _ in range(400)]
    photos = [(f"x{n:03}", f"x{n:03}", "Manx", 0, bytes(row)) for n, row in enumerate(rows)]
    # Each copy differs from its photo in 6 bands, so it shares 2 bands with it.
    bits = [sum(1 << (255 - 16 * row) for row in rows) for rows in combinations(range(8), 6)]
    copies = [
        (f"y{n:03}", f"y{n:03}", "Manx", 1, (int.from_bytes(photo[4]) ^ changed).to_bytes(32))
        for n, (photo, changed) in enumerate(zip(photos, bits, strict=False))
    ]
    excluded, groups = find_duplicates(photos + copies)
    assert excluded == {f"y{n:03}": {"kind": "near_duplicate", "like": f"x{n:03}"} for n in range(len(copies))}
    assert groups == {path: path for _, path, *_ in photos}


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
        return CHAIN["xyz".index(pixels)][:30] + bytes([shift % 256, shift // 256])

    photos = [
        (f"{p}{s}", str(i), breed, ("xyz".index(p) + s) % 3, synthetic_hash(p, s))
        for i, (p, breed, s) in enumerate(generated)
    ]
    expected, groups = {}, {path: {path} for _, path, *_ in photos}
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
            if near and breed == other_breed:
                groups |= dict.fromkeys(joined := groups[path] | groups[other], joined)
        if reasons:
            expected[path] = reasons
    excluded, found_groups = find_duplicates(photos)
    kinds = {path: row["kind"] for path, row in excluded.items()}
    assert kinds.keys() == expected.keys()
    for path, kind in kinds.items():
        assert kind in expected[path]
        if "duplicate" not in expected[path]:
            assert kind == min(expected[path], key=KINDS.index)
    kept = {path: content for content, path, *_ in photos if path not in expected}
    assert found_groups == {path: min(kept[p] for p in groups[path] if p in kept) for path in kept}
