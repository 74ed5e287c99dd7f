"""The deal: which split a photo is in."""

import hashlib

SPLITS = ("train", "eval", "test")


def split_of(content_hash: str, train: float, eval: float, seed: int) -> str:
    """The split of a photo: a function of its own pixels, so that it never moves when others come or go.

    Args:
        content_hash: of the normalised pixels.
        train: share of the train split; `eval` likewise, test is the rest.
        seed: deals the photos anew.
    """
    deal = hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()
    position = int.from_bytes(deal[:8], "big") / 2**64
    return "train" if position < train else "eval" if position < train + eval else "test"
