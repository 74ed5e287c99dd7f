"""Names of the embedding features: `embedding_<backbone>_<depth>`, one for each backbone and each of its last blocks.

The outputs of a backbone, the examples of EmbeddingGen, the outputs of Transform and the inputs of a head use the same
names. Depth 0 is the last block, depth 1 the block before it.
"""

import re
from collections.abc import Iterable

# `embedding` alone is the only feature of runs before a backbone had several.
_PATTERN = re.compile(r"embedding(?:_(?P<backbone>\w+)_(?P<depth>\d+))?")


def feature_name(backbone: str, depth: int) -> str:
    """Name of the embedding of `backbone` at `depth`."""
    return f"embedding_{backbone}_{depth}"


def feature_depth(feature: str) -> int:
    """Number of blocks between the block of `feature` and the last block of its backbone."""
    return int(_PATTERN.fullmatch(feature)["depth"] or 0)


def embedding_features(features: Iterable[str]) -> list[str]:
    """Return the embeddings among `features`, those of the last blocks first.

    This is the order of the columns wherever embeddings are joined, so the last blocks are the first columns.
    """
    return sorted(filter(_PATTERN.fullmatch, features), key=lambda feature: (feature_depth(feature), feature))
