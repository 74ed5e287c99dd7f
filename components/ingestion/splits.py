"""Assignment of photos to splits."""

import hashlib

SPLITS = ("train", "eval", "test")


def assign_split(content_hash: str, train: float, eval: float, seed: int) -> str:
    """Assign a photo to a split by its own pixels only, so that adding or removing other photos never moves it.

    Args:
        content_hash: Hash of the normalized pixels.
        train: Share of the train split.
        eval: Share of the eval split; the test split is the rest.
        seed: Seed of the split assignment.
    """
    digest = hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if position < train else "eval" if position < train + eval else "test"
