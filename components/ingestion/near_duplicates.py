"""The same photo twice, or nearly: found by perceptual hashes, so that none is learned from and measured on.

All rules look at pairs of photos, never at an order of arrival: the result is the same whatever came when.
"""

from collections.abc import Iterable, Iterator

import apache_beam as beam
import imagehash
import numpy as np
from PIL import Image

HASH_SIDE = 16  # bits on a side of a perceptual hash
_PICTURE_SIDE = 4 * HASH_SIDE
_BAND_SIDE = 8  # the lowest frequencies, which survive best, are the bands by which photos meet
_BLOCK = 1024

# Where a photo is left out for several reasons, the first is told.
KINDS = ("label_conflict", "duplicate", "near_duplicate")


def perceptual_hash(image: Image.Image) -> bytes:
    """Perceptual hash of 256 bits, as 32 bytes: which of the lowest 16 x 16 frequencies are above their median.

    The pHash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). On 84 photos of
    cats, none a copy, the nearest pair differs in 96 bits. A copy at half the size and JPEG quality 10 differs
    in at most 50, as does one that lost 2 % at each border.
    """
    grey = image if image.mode == "L" else image.convert("L")
    # Averaged first, which is quick and cannot alias.
    small = grey.resize((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return np.packbits(imagehash.phash(small, hash_size=HASH_SIDE).hash).tobytes()


class FindDuplicates(beam.PTransform):
    """Photos that must be left out because of another one. Only hashes are shuffled, never images.

    Input: (content_hash, (path, breed, rank of the split, perceptual hash)) of each photo.
    Output: {"path", "kind", "like"}, at most one a photo; `like` is the path of the other.

    - label_conflict: the same picture, or nearly, is under another breed; both are left out.
    - duplicate: the same pixels as a photo of its breed with a smaller path.
    - near_duplicate: nearly the same as a photo of its breed in a split of lower rank. Nothing moves, and two in one
      split both stay.

    Args:
        bits: most bits by which perceptual hashes of near-duplicates differ. Pairs that differ in less than 8 of the 64
            lowest frequencies are certain to be compared (one of 8 bands is then equal), others likely.
    """

    def __init__(self, bits: int):
        super().__init__()
        self._bits = bits

    def expand(self, photos: beam.PCollection) -> beam.PCollection:  # noqa: D102
        exact = (
            photos | "ByContent" >> beam.GroupByKey() | "Exact" >> beam.FlatMap(_exact).with_outputs(main="distinct")
        )
        near = (
            exact.distinct
            | "Bands" >> beam.FlatMap(_bands)
            | "ByBand" >> beam.GroupByKey()
            | "Near" >> beam.FlatMap(_near, self._bits)
        )
        return (
            (exact.found, near)
            | beam.Flatten()
            | "ByPath" >> beam.CombinePerKey(min)
            | beam.MapTuple(lambda path, found: {"path": path, "kind": KINDS[found[0]], "like": found[1]})
        )


def _exact(group: tuple[str, Iterable[tuple]]) -> Iterator:
    """Photos with the same pixels -> one of each breed, and those left out on `found`."""
    photos = sorted(group[1])
    first = {}
    for photo in photos:
        first.setdefault(photo[1], photo)
    yield from first.values()
    for path, breed, _, _ in photos:
        other = next((other[0] for name, other in first.items() if name != breed), None)
        if other is not None:
            yield beam.pvalue.TaggedOutput("found", (path, (KINDS.index("label_conflict"), other)))
        elif path != first[breed][0]:
            yield beam.pvalue.TaggedOutput("found", (path, (KINDS.index("duplicate"), first[breed][0])))


def _bands(photo: tuple) -> Iterator[tuple[int, tuple]]:
    bits = np.unpackbits(np.frombuffer(photo[3], np.uint8)).reshape(HASH_SIDE, HASH_SIDE)
    for band, byte in enumerate(np.packbits(bits[:_BAND_SIDE, :_BAND_SIDE])):
        yield band << 8 | int(byte), photo


def _near(group: tuple[int, Iterable[tuple]], most: int) -> Iterator[tuple[str, tuple[int, str]]]:
    """Photos with one band in common -> those that are near another, which is named.

    Compared in blocks, and one other is enough: a thousand copies cost no more memory than a thousand photos.
    """
    photos = sorted(group[1])
    if len(photos) < 2:
        return
    packed = np.frombuffer(b"".join(photo[3] for photo in photos), np.uint8).reshape(len(photos), -1)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    breeds = np.unique([photo[1] for photo in photos], return_inverse=True)[1]
    ranks = np.array([photo[2] for photo in photos])
    for start in range(0, len(photos), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = signs[block] @ signs.T >= HASH_SIDE**2 - 2 * most
        same_breed = breeds[block, None] == breeds
        conflict = near & ~same_breed
        straddling = near & same_breed & (ranks[block, None] > ranks)
        for kind, found in (("label_conflict", conflict), ("near_duplicate", straddling)):
            for row in np.flatnonzero(found.any(axis=1)):
                yield photos[start + row][0], (KINDS.index(kind), photos[found[row].argmax()][0])
