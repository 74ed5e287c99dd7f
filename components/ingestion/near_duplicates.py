"""Exact and near-duplicates of photos, which would otherwise leak from the train split into the eval and test splits.

All rules compare pairs of photos and ignore the order of processing, so the result is deterministic.
"""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse.csgraph import connected_components

from serving.perceptual_hash import HASH_SIDE

# Photos are compared if they agree in one band, a row of the 8 x 8 lowest frequencies: edits change those the least.
_BAND_SIDE = 8
# Of more photos that agree in one band, only those that also agree in another band are compared, and neighbors in the
# order of the hashes. With evenly distributed hashes this begins at 262,144 photos.
_BLOCK_SIZE = 1024

# Rank of train photos that never exclude a photo of another rank.
LOWEST_RANK = 3

# In order of precedence: if several apply to a photo, the first is reported.
KINDS = ("label_conflict", "duplicate", "near_duplicate")


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

    Photos of rank LOWEST_RANK are in train too, but exclude only each other: they are excluded themselves if they are
    identical to another photo, or nearly identical to one of eval, of test or of another breed.

    Photos of one breed that are connected by a chain of near-duplicates are one group. Excluded photos are links of
    such chains too: a train photo and an eval photo may both be nearly identical to an excluded photo, but not to each
    other. The name of the group is the smallest content hash of its photos that are kept.

    Args:
        max_distance: Maximum Hamming distance in bits between the perceptual hashes of near-duplicates. Pairs that
            differ in fewer than 8 of the 64 lowest frequencies share one of the 8 bands and are compared; other pairs
            are likely to be compared. If more than 1,024 photos share the band, pairs that differ in fewer than 7 of
            these frequencies share two bands and are compared.
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
    # The split depends on the pixels, so that only photos of LOWEST_RANK differ in rank from the others.
    content_hash, photos = group[0], sorted(group[1], key=lambda photo: (photo[2], photo[0]))
    first = {}
    for photo in photos:
        first.setdefault(photo[1], photo)
    yield from ((*photo, content_hash) for photo in first.values())
    for path, breed, rank, _ in photos:
        other = next((other[0] for name, other in first.items() if name != breed and _excludes(other[2], rank)), None)
        if other is not None:
            yield beam.pvalue.TaggedOutput("duplicates", (path, (KINDS.index("label_conflict"), other)))
        elif path != first[breed][0]:
            yield beam.pvalue.TaggedOutput("duplicates", (path, (KINDS.index("duplicate"), first[breed][0])))


def _excludes(rank: int | np.ndarray, other: int | np.ndarray) -> bool | np.ndarray:
    """Whether photos of `rank` exclude photos of the rank `other` because of another breed."""
    return (rank < LOWEST_RANK) | (other == LOWEST_RANK)


def _key_by_band(photo: tuple) -> Iterator[tuple[int, tuple]]:
    for band, value in enumerate(_bands(photo[3])[0]):
        yield band << 8 | int(value), photo


def _bands(hashes: bytes) -> np.ndarray:
    """Return the bands of n perceptual hashes, uint8 [n, bands]."""
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8)).reshape(-1, HASH_SIDE, HASH_SIDE)
    return np.packbits(bits[:, :_BAND_SIDE, :_BAND_SIDE], axis=2).reshape(-1, _BAND_SIDE)


def _find_near_duplicates(group: tuple[int, Iterable[tuple]], max_distance: int) -> Iterator:
    """Yield near-duplicates among photos that agree in one band, each with the path of one other photo.

    On `links`, yield pairs of photos in the same group of near-duplicates, each photo as (content_hash, path).
    """
    # Sorted by the perceptual hash, then by the path.
    photos = sorted(group[1], key=lambda photo: (photo[3], photo[0]))
    if len(photos) < 2:
        return
    hashes = b"".join(photo[3] for photo in photos)
    packed = np.frombuffer(hashes, np.uint8).reshape(len(photos), -1)
    breeds = np.unique([photo[1] for photo in photos], return_inverse=True)[1]
    ranks = np.array([photo[2] for photo in photos])
    path_ranks = np.argsort(sorted(range(len(photos)), key=lambda number: photos[number][0]))
    for block in _blocks(_bands(hashes), group[0] >> 8):
        signs = np.unpackbits(packed[block], axis=1).astype(np.float32) * 2 - 1
        near = signs @ signs.T >= HASH_SIDE**2 - 2 * max_distance
        same_breed = breeds[block, None] == breeds[block]
        conflict, alike = near & ~same_breed & _excludes(ranks[block], ranks[block, None]), near & same_breed
        # A photo of LOWEST_RANK is in the same split as the train photos, whose rank is 0.
        in_later_split = (ranks[block, None] > ranks[block]) & ((ranks[block, None] < LOWEST_RANK) | (ranks[block] > 0))
        across_splits = alike & in_later_split
        for kind, matches in (("label_conflict", conflict), ("near_duplicate", across_splits)):
            for row in np.flatnonzero(matches.any(axis=1)):
                others = block[matches[row]]
                like = photos[others[path_ranks[others].argmin()]]
                yield photos[block[row]][0], (KINDS.index(kind), like[0])
        _, first, component = np.unique(connected_components(alike)[1], return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[component] < np.arange(len(block))):
            ends = photos[block[first[component[row]]]], photos[block[row]]
            yield beam.pvalue.TaggedOutput("links", tuple((photo[4], photo[0]) for photo in ends))


def _blocks(bands: np.ndarray, shared: int) -> Iterator[np.ndarray]:
    """Yield the indices of photos to compare with each other, in blocks of at most `_BLOCK_SIZE`.

    The number of comparisons per photo is bounded, so that the cost grows linearly with the number of photos.

    Args:
        bands: Bands of photos that agree in one band, in the order of their perceptual hashes, uint8 [n, bands].
        shared: Number of the band in which they agree.
    """
    yield from _windows(np.arange(len(bands)))
    if len(bands) > _BLOCK_SIZE:
        for values in bands.T[shared + 1 :]:
            order = np.argsort(values, kind="stable")
            for members in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
                if len(members) < len(bands):  # otherwise already compared
                    yield from _windows(members)


def _windows(members: np.ndarray) -> Iterator[np.ndarray]:
    """Yield overlapping parts of `members`: each index with about `_BLOCK_SIZE` / 2 before it and after it."""
    step = max(1, _BLOCK_SIZE // 2)
    for start in range(0, max(1, len(members) - step), step):
        yield members[start : start + _BLOCK_SIZE]


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
