"""The photos that are new since the champion, and how both models do on those in test."""

import pytest

from components.release.new_photos import describe_new_photos, new_photos

CHAMPION = {"version": 3, "breeds": ["Birman", "Sphynx"], "learned": ["a", "b"], "tested": ["c"], "unreadable": None}


def photo(content_hash: str, split: str, breed: str = "Birman", reason: str | None = None) -> dict:
    origin = {"origin": {"reason": reason}} if reason else {}
    return {"content_hash": content_hash, "split": split, "breed": breed, **origin}


PHOTOS = [
    photo("a", "train"),
    photo("b", "eval"),
    photo("c", "test"),
    photo("d", "train", reason="uncertain"),
    photo("e", "test", reason="random"),
    photo("f", "test", breed="Bengal"),
    {"path": "damaged.jpg", "breed": "Birman", "kind": "damaged", "reason": "damaged"},
]
CANDIDATE = [{"content_hash": name, "correct": right} for name, right in (("c", False), ("e", True), ("f", True))]
OTHER = [{"content_hash": name, "correct": right} for name, right in (("c", True), ("e", True), ("f", False))]


def test_new_photos_are_counted_by_split_breed_and_origin():
    new = new_photos(PHOTOS, CHAMPION, CANDIDATE, OTHER)
    assert new == {
        "version": 3,
        "splits": {"train": 1, "eval": 0, "test": 2},
        "breeds": {"Bengal": 1, "Birman": 2},
        "new_breeds": ["Bengal"],
        "captured_random": 1,
        "captured_uncertain": 1,
        "test": {"photos": 2, "candidate_right": 2, "champion_right": 1},
    }
    assert describe_new_photos(new) == (
        "new since version 3: 3 photos (1 in train, 2 in test; 1 captured at random; 1 captured because the model was "
        "uncertain), with the new breeds Bengal. On those in test, the candidate is right on 2 of 2, version 3 on 1"
    )


def test_without_a_comparison_only_the_candidate_is_counted():
    new = new_photos(PHOTOS, CHAMPION, CANDIDATE, [])
    assert new["test"]["champion_right"] is None
    assert describe_new_photos(new).endswith("the candidate is right on 2 of 2")


@pytest.mark.parametrize(
    "champion", [None, {"version": 3, "unreadable": "damaged"}, {**CHAMPION, "tested": None}], ids=str
)
def test_nothing_is_said_without_the_photos_of_the_champion(champion):
    assert new_photos(PHOTOS, champion, CANDIDATE, []) is None


def test_nothing_is_said_if_nothing_is_new():
    assert describe_new_photos(new_photos(PHOTOS[:3], CHAMPION, CANDIDATE, OTHER)) is None
