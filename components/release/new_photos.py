"""Photos that are new since the champion, and how both models do on those of them that are in test."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from components.ingestion.splits import SPLITS
from serving.capture_reasons import RANDOM_SHARE
from serving.names import counted


def new_photos(
    photos: Sequence[dict[str, Any]],
    champion_info: dict[str, Any] | None,
    candidate: Sequence[dict[str, Any]],
    champion: Sequence[dict[str, Any]],
) -> dict[str, Any] | None:
    """Describe the photos that the run of the champion did not have.

    Args:
        photos: Rows of photos.jsonl from ImageExampleGen.
        champion_info: Contents of champion.json.
        candidate: The candidate's outcomes on test.
        champion: The champion's outcomes on test; empty if there is no comparison.

    Returns:
        version: Version of the champion.
        splits: Number of new photos by split.
        breeds: Number of new photos by breed.
        new_breeds: Breeds that the champion does not know.
        captured_random, captured_uncertain: Number of new photos from captures, by the reason of the capture.
        test: photos, candidate_right and champion_right (None without a comparison) on the new photos in test.
        The result is None without a champion, or if an earlier release pushed it, which recorded no test photos.
    """
    if not champion_info or champion_info["unreadable"] or champion_info.get("tested") is None:
        return None
    known = {*champion_info["learned"], *champion_info["tested"]}
    new = [row for row in photos if "split" in row and row["content_hash"] not in known]
    reasons = Counter(row["origin"]["reason"] == RANDOM_SHARE for row in new if "origin" in row)
    in_test = {row["content_hash"] for row in new if row["split"] == "test"}
    breeds = Counter(row["breed"] for row in new)

    def right(outcomes: Sequence[dict[str, Any]]) -> int:
        return sum(row["correct"] for row in outcomes if row["content_hash"] in in_test)

    return {
        "version": champion_info["version"],
        "splits": {split: sum(row["split"] == split for row in new) for split in SPLITS},
        "breeds": dict(sorted(breeds.items())),
        "new_breeds": sorted(breeds.keys() - set(champion_info["breeds"])),
        "captured_random": reasons[True],
        "captured_uncertain": reasons[False],
        "test": {
            "photos": len(in_test),
            "candidate_right": right(candidate),
            "champion_right": right(champion) if champion else None,
        },
    }


def describe_new_photos(new: dict[str, Any]) -> str | None:
    """Describe the result of `new_photos` in a sentence; None if there are no new photos."""
    total = sum(new["splits"].values())
    if not total:
        return None
    version, captured, test = new["version"], [], new["test"]
    if new["captured_random"]:
        captured.append(f"{new['captured_random']} captured at random")
    if new["captured_uncertain"]:
        captured.append(f"{new['captured_uncertain']} captured because the model was uncertain")
    splits = ", ".join(f"{number} in {split}" for split, number in new["splits"].items() if number)
    sentence = f"new since version {version}: {counted(total, 'photo')} ({'; '.join([splits, *captured])})"
    if new["new_breeds"]:
        sentence += f", with the new breeds {', '.join(new['new_breeds'])}"
    if test["photos"]:
        sentence += f". On those in test, the candidate is right on {test['candidate_right']} of {test['photos']}"
        if test["champion_right"] is not None:
            sentence += f", version {version} on {test['champion_right']}"
    return sentence
