"""Exact and near-duplicates of photos, which would otherwise leak from the train split into the eval and test splits.

All rules compare pairs of photos and ignore the order of processing, so the result is deterministic.
"""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import imagehash
import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import DisjointSet

_HASH_SIDE = 16  # width and height of a perceptual hash, in bits
_RESIZED_SIDE = 4 * _HASH_SIDE
# Photos are compared if they agree in one band, a row of the 8 x 8 lowest frequencies: edits change those the least.
_BAND_SIDE = 8
_BLOCK_SIZE = 1024

# In order of precedence: if several apply to a photo, the first is reported.
KINDS = ("label_conflict", "duplicate", "near_duplicate")


def perceptual_hash(luma: Image.Image) -> bytes:
    """Compute the perceptual hash of a grayscale image: 256 bits, as 32 bytes.

    Each bit is 1 if one of the lowest 16 x 16 frequencies is above their median. This is the pHash of Zauner
    (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Among 84 different photos of cats, the
    closest pair differs in 96 bits. A copy at half the size and JPEG quality 10 differs in at most 50 bits, and so
    does a copy with 2 % cropped from each border.
    """
    # With reducing_gap, Pillow averages pixels first, which is fast and avoids aliasing.
    small = luma.resize((_RESIZED_SIDE, _RESIZED_SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return np.packbits(imagehash.phash(small, hash_size=_HASH_SIDE).hash).tobytes()


class Duplicates(NamedTuple):
    """Output of `FindDuplicates`.

    Attributes:
        excluded: (path, {"kind", "like"}) of each photo to exclude; `like` is the path of another photo.
        groups: (path, group) of each other photo whose near-duplicate group is not its own content hash.
    """

    excluded: beam.PCollection
    groups: beam.PCollection


class FindDuplicates(beam.PTransform):
    """Beam transform that finds photos to exclude because of another photo, and groups of near-duplicates.

    Only hashes are shuffled, never images.

    Input: (content_hash, (path, breed, rank of the split, perceptual hash)) for each photo.
    Output: See `Duplicates`. Photos are excluded for these reasons:

    - label_conflict: An identical or nearly identical photo has another breed; both are excluded.
    - duplicate: A photo of the same breed with a smaller path has the same pixels.
    - near_duplicate: A photo of the same breed in a split of lower rank is nearly identical. No photo changes its
      split, and near-duplicates in the same split are kept.

    Photos of one breed that are connected by a chain of near-duplicates are one group. Excluded photos are links of
    such chains too: a train photo and an eval photo may both be nearly identical to an excluded photo, but not to each
    other. The name of the group is the smallest content hash of its photos that are kept.

    Args:
        max_distance: Maximum Hamming distance in bits between the perceptual hashes of near-duplicates. Pairs that
            differ in fewer than 8 of the 64 lowest frequencies share one of the 8 bands and are always compared; other
            pairs are likely to be compared.
    """

    def __init__(self, max_distance: int):
        super().__init__()
        self._max_distance = max_distance

    def expand(self, photos: beam.PCollection) -> Duplicates:  # noqa: D102
        exact = (
            photos
            | "ByContent" >> beam.GroupByKey()
            | "Exact" >> beam.FlatMap(_find_exact_duplicates).with_outputs("duplicates", main="distinct")
        )
        near = (
            exact.distinct
            | "Bands" >> beam.FlatMap(_key_by_band)
            | "ByBand" >> beam.GroupByKey()
            | "Near" >> beam.FlatMap(_find_near_duplicates, self._max_distance).with_outputs("links", main="duplicates")
        )
        excluded = (
            (exact.duplicates, near.duplicates)
            | beam.Flatten()
            | "ByPath" >> beam.CombinePerKey(min)
            | beam.MapTuple(lambda path, duplicate: (path, {"kind": KINDS[duplicate[0]], "like": duplicate[1]}))
        )
        groups = (
            near.links
            | "AllLinks" >> beam.combiners.ToList()
            | "Groups" >> beam.FlatMap(_assign_groups, beam.pvalue.AsDict(excluded))
        )
        return Duplicates(excluded, groups)


def _find_exact_duplicates(group: tuple[str, Iterable[tuple]]) -> Iterator:
    """Yield one photo of each breed among photos with the same pixels; those to exclude go to `duplicates`."""
    content_hash, photos = group[0], sorted(group[1])
    first = {}
    for photo in photos:
        first.setdefault(photo[1], photo)
    yield from ((*photo, content_hash) for photo in first.values())
    for path, breed, _, _ in photos:
        other = next((other[0] for name, other in first.items() if name != breed), None)
        if other is not None:
            yield beam.pvalue.TaggedOutput("duplicates", (path, (KINDS.index("label_conflict"), other)))
        elif path != first[breed][0]:
            yield beam.pvalue.TaggedOutput("duplicates", (path, (KINDS.index("duplicate"), first[breed][0])))


def _key_by_band(photo: tuple) -> Iterator[tuple[int, tuple]]:
    bits = np.unpackbits(np.frombuffer(photo[3], np.uint8)).reshape(_HASH_SIDE, _HASH_SIDE)
    for band, byte in enumerate(np.packbits(bits[:_BAND_SIDE, :_BAND_SIDE])):
        yield band << 8 | int(byte), photo


def _find_near_duplicates(group: tuple[int, Iterable[tuple]], max_distance: int) -> Iterator:
    """Yield near-duplicates among photos that agree in one band, each with the path of one other photo.

    On `links`, yield pairs of photos in the same group of near-duplicates, each photo as (content_hash, path).

    Photos are compared in blocks and only one match and one link for each is kept, so that many copies need no extra
    memory.
    """
    photos = sorted(group[1])
    if len(photos) < 2:
        return
    packed = np.frombuffer(b"".join(photo[3] for photo in photos), np.uint8).reshape(len(photos), -1)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    breeds = np.unique([photo[1] for photo in photos], return_inverse=True)[1]
    ranks = np.array([photo[2] for photo in photos])
    leaders = np.arange(len(photos))  # first photo of each photo's group
    for start in range(0, len(photos), _BLOCK_SIZE):
        block = slice(start, start + _BLOCK_SIZE)
        near = signs[block] @ signs.T >= _HASH_SIDE**2 - 2 * max_distance
        same_breed = breeds[block, None] == breeds
        conflict, alike = near & ~same_breed, near & same_breed
        across_splits = alike & (ranks[block, None] > ranks)
        for kind, matches in (("label_conflict", conflict), ("near_duplicate", across_splits)):
            for row in np.flatnonzero(matches.any(axis=1)):
                yield photos[start + row][0], (KINDS.index(kind), photos[matches[row].argmax()][0])
        for row in np.flatnonzero(alike.sum(axis=1) > 1):  # a photo is like itself
            joined = np.unique(leaders[alike[row]])
            leaders[np.isin(leaders, joined)] = joined[0]
    for photo, leader in zip(photos, leaders, strict=True):
        if photo is not photos[leader]:
            first = photos[leader]
            yield beam.pvalue.TaggedOutput("links", ((first[4], first[0]), (photo[4], photo[0])))


def _assign_groups(links: list[tuple], excluded: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, group) of each photo that is kept and whose group is not its own content hash.

    Args:
        links: Pairs of photos in the same group, each photo as (content_hash, path).
        excluded: Paths of the photos that are not kept.
    """
    photos = DisjointSet(photo for link in links for photo in link)
    for link in links:
        photos.merge(*link)
    for group in photos.subsets():
        kept = sorted(photo for photo in group if photo[1] not in excluded)
        yield from ((path, kept[0][0]) for _, path in kept[1:])
