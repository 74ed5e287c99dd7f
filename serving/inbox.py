"""Review of captured photos: their order, and accepting, rejecting and forgetting them.

An accepted photo becomes a file of the photo folder with an origin, see `serving.photo_origins`. Each function can be
repeated after an interruption; a photo is never in the folder without its origin.
"""

import contextlib
import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from serving.captures import Capture, CaptureStore, NoCapture, Review, now
from serving.client.answers import NOT_A_CAT, UNSURE
from serving.names import is_ignored, is_one_line, printable, spelling
from serving.perceptual_hash import distances, perceptual_hash
from serving.photo_normalization import PhotoError, normalize
from serving.photo_origins import Origin, add_origin, file_digest, read_origins, remove_origin

# Photos that look alike, such as several photos of a cat in one place. Different photos differ in at least 96 bits; see
# `serving.perceptual_hash`. It only affects the order.
_LOOK_ALIKE_BITS = 90
_MIN_SHORT_ID = 8
_LOG = logging.getLogger(__name__)


class InboxError(ValueError):
    """A command on captures cannot be carried out; the message says why and what to do."""


@dataclass(frozen=True)
class Item:
    """A capture in the inbox.

    Attributes:
        capture: The capture.
        perceptual_hash: See `serving.perceptual_hash`.
        near_duplicate_of: Path of a photo in the photo folder that is nearly the same; None without one.
        look_alikes: Number of other captures that look alike.
    """

    capture: Capture
    perceptual_hash: bytes
    near_duplicate_of: str | None
    look_alikes: int

    @property
    def short_id(self) -> str:
        """The first digits of the ID without the day."""
        return self.capture.id.partition("-")[2][:_MIN_SHORT_ID]

    @property
    def proposed_breed(self) -> str | None:
        """Breed under which the photo is accepted by default: that of the feedback, otherwise the predicted one.

        None if the user says that it is not a cat.
        """
        feedback = self.capture.feedback
        return self.capture.answer.best.breed if feedback in (None, UNSURE) else _breed_or_none(feedback)

    @property
    def has_disagreeing_feedback(self) -> bool:
        """Whether the user's feedback names another breed than the model, or says that it is not a cat."""
        return self.capture.feedback not in (None, UNSURE, self.capture.answer.best.breed)

    def document(self) -> dict[str, Any]:
        """Return the item as a JSON document."""
        capture, review = self.capture, self.capture.review
        decision = None if review is None else "rejected" if review.breed is None else "accepted"
        return {
            "id": capture.id,
            "time": capture.time,
            "reason": capture.reason,
            "version": capture.answer.model.version,
            "predicted": capture.answer.best.breed,
            "probability": capture.answer.best.probability,
            "prediction_set": capture.answer.prediction_set,
            "unfamiliar": capture.answer.unfamiliar,
            "feedback": capture.feedback,
            "proposed_breed": self.proposed_breed,
            "near_duplicate_of": self.near_duplicate_of,
            "look_alikes": self.look_alikes,
            "decision": decision,
            "breed": review and review.breed,
            "reviewer": review and review.reviewer,
            "photo": str(capture.photo),
        }


def read_inbox(
    captures: Iterable[Capture],
    known: Mapping[str, bytes],
    max_distance: int,
    on_progress: Callable[[], None] = lambda: None,
) -> list[Item]:
    """Return captures with the most useful for review first.

    First come those with feedback that disagrees with the model, then those whose prediction set has several breeds,
    then those with the least probability of the predicted breed. Of captures that look alike, the second comes after
    the first of all others, so that many photos of one cat do not fill the page. Deleted and damaged photos are left
    out; damaged ones are logged.

    Args:
        captures: The captures.
        known: Perceptual hashes of the photos in the photo folder, by path.
        max_distance: Maximum distance in bits of near-duplicates.
        on_progress: Called for each capture that is done.
    """

    def hash_of(capture: Capture) -> bytes | None:
        try:
            return perceptual_hash(normalize(capture.photo.read_bytes()).luma)
        except FileNotFoundError:  # deleted meanwhile
            return None
        except PhotoError as error:
            _LOG.warning("%s: %s; delete the capture with `catbreeds inbox forget`", capture.photo, error)
            return None
        finally:
            on_progress()

    captures = list(captures)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = list(zip(captures, pool.map(hash_of, captures), strict=True))
    captures = [capture for capture, image_hash in hashed if image_hash]
    hashes = np.array([np.frombuffer(image_hash, np.uint8) for _, image_hash in hashed if image_hash], np.uint8)
    paths, known_hashes = list(known), np.array([np.frombuffer(known[path], np.uint8) for path in known], np.uint8)
    groups = DisjointSet(range(len(captures)))
    items = []
    for number, capture in enumerate(captures):
        for other in np.flatnonzero(distances(hashes[number], hashes[:number]) <= _LOOK_ALIKE_BITS):
            groups.merge(number, int(other))
        near = None
        if paths:
            to_known = distances(hashes[number], known_hashes)
            nearest = (paths[index] for index in to_known.argsort(stable=True) if to_known[index] <= max_distance)
            near = next((path for path in nearest if capture.id not in path), None)
        items.append((capture, hashes[number].tobytes(), near))
    sizes = [groups.subset_size(number) for number in range(len(items))]
    rows = [(Item(*item, sizes[number] - 1), groups[number]) for number, item in enumerate(items)]
    rows.sort(key=lambda row: _priority(row[0]))
    ranks, ranked = defaultdict(int), []
    for item, group in rows:
        ranked.append((ranks[group], item))
        ranks[group] += 1
    return [item for _, item in sorted(ranked, key=lambda row: row[0])]


def _priority(item: Item) -> tuple:
    answer = item.capture.answer
    return not item.has_disagreeing_feedback, len(answer.prediction_set or "") < 2, answer.best.probability


def find_capture(store: CaptureStore, text: str, other_ids: Iterable[str] = ()) -> str:
    """Return the ID of a capture from its ID or from the beginning of its ID, with or without the day.

    Args:
        store: The captures.
        text: Text from the user.
        other_ids: IDs of captures that may no longer be in the store.

    Raises:
        InboxError: If there is none, or more than one.
    """
    ids = sorted({*store.ids(), *other_ids})
    found = [i for i in ids if i.startswith(text) or i.partition("-")[2].startswith(text)] if text else []
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    if not found:
        raise InboxError(f"{text}: no such capture; `catbreeds inbox` lists them")
    raise InboxError(f"{text}: {len(found)} captures begin with it; pass more digits")


def accept(store: CaptureStore, item: Item, breed: str, data: Path, reviewer: str, new_breed: bool = False) -> Path:
    """Copy a captured photo to the photo folder. An earlier copy under another breed is removed.

    Args:
        store: The captures.
        item: The capture.
        breed: Breed of the photo.
        data: Photo folder with one folder per breed.
        reviewer: Name of the reviewer.
        new_breed: Whether to create the folder of the breed if it does not exist.

    Returns:
        Path of the copy.

    Raises:
        InboxError: If the breed has no folder, another file of the photo folder has the same content, or another photo
            folder has a copy.
        NoCapture: If the capture was deleted meanwhile; the photo folder then has no copy.
        OriginsError: If the file of origins is damaged.
        OSError: If a file cannot be written.
    """
    capture = item.capture
    folder, recorded = _breed_folder(data, breed, new_breed), store.copied_to(capture.id)
    if recorded not in (None, data.resolve()):
        raise InboxError(f"{capture.id}: accepted before, to {printable(str(recorded))}; pass that folder with --data")
    # First, so that a deletion from now on knows of the copy.
    store.set_copied_to(capture.id, data)
    try:
        target = _copy(capture, item.perceptual_hash, breed, data, folder, reviewer)
        store.write_review(capture.id, Review(breed, reviewer, now()))
    except NoCapture:
        _remove_copies(data, capture.id)
        store.set_copied_to(capture.id, None)
        raise
    return target


def _copy(capture: Capture, image_hash: bytes, breed: str, data: Path, folder: Path, reviewer: str) -> Path:
    """Add the origin, then copy the photo to the folder of the breed; return the path of the copy."""
    try:
        photo = capture.photo.read_bytes()
    except FileNotFoundError:
        raise NoCapture(f"no capture {capture.id}") from None
    target = folder / f"{_copy_name(capture.id)}{capture.photo.suffix}"
    digest, origins = file_digest(photo), read_origins(data)
    same_size = [path for path in _files(data) if path != target and path.stat().st_size == len(photo)]
    same = [path for path in same_size if file_digest(path.read_bytes()) == digest]
    if same and (digest not in origins or origins[digest].capture != capture.id):
        raise InboxError(f"{capture.id}: {printable(str(same[0]))} is the same photo; reject the capture")
    origin = Origin(
        file_digest=digest,
        capture=capture.id,
        reason=capture.reason,
        captured_at=capture.time,
        version=capture.answer.model.version,
        predicted=capture.answer.best.breed,
        feedback=capture.feedback,
        breed=breed,
        reviewer=reviewer,
        decided_at=now(),
        perceptual_hash=image_hash.hex(),
    )
    add_origin(data, origin)
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{target.name}"
    temporary.write_bytes(photo)
    os.replace(temporary, target)
    for path in same:
        path.unlink()
    return target


def reject(store: CaptureStore, capture_id: str, data: Path | None, reviewer: str) -> list[Path]:
    """Reject a captured photo. Copies in the photo folder are removed.

    Args:
        store: The captures.
        capture_id: ID of the capture.
        data: Photo folder; None if no photo folder has a copy.
        reviewer: Name of the reviewer.

    Returns:
        Paths of the removed copies.

    Raises:
        The errors of `forget`, and NoCapture if the capture was deleted meanwhile.
    """
    removed = _remove_recorded_copies(store, capture_id, data)
    store.write_review(capture_id, Review(None, reviewer, now()))
    return removed


def forget(store: CaptureStore, capture_id: str, data: Path) -> list[Path]:
    """Delete a capture if it still exists, and its copies in the photo folder with their origin.

    Args:
        store: The captures.
        capture_id: ID of the capture.
        data: Photo folder.

    Returns:
        Paths of the removed copies.

    Raises:
        InboxError: If the photo was accepted to another photo folder that is not on this machine.
        OriginsError: If the file of origins is damaged.
        OSError: If a file cannot be deleted.
    """
    removed = _remove_recorded_copies(store, capture_id, data)
    with contextlib.suppress(NoCapture):
        store.delete(capture_id)
    return removed


def _remove_recorded_copies(store: CaptureStore, capture_id: str, data: Path | None) -> list[Path]:
    """Remove the copies in `data` and in the folder that the photo was accepted to, and the record of that folder."""
    recorded = store.copied_to(capture_id)
    folders = {folder.resolve() for folder in (data, recorded) if folder is not None and folder.is_dir()}
    is_known = any(origin.capture == capture_id for folder in folders for origin in read_origins(folder).values())
    if recorded is not None and recorded not in folders and not is_known:
        raise InboxError(
            f"{capture_id}: accepted to {printable(str(recorded))}, which is not on this machine; pass --data with the "
            "photo folder"
        )
    removed = [path for folder in sorted(folders) for path in _remove_copies(folder, capture_id)]
    store.set_copied_to(capture_id, None)
    return removed


def accepted_captures(data: Path) -> list[str]:
    """IDs of the captures that the photo folder has copies of."""
    return sorted(origin.capture for origin in read_origins(data).values())


def _remove_copies(data: Path, capture_id: str) -> list[Path]:
    digests = {origin.file_digest for origin in read_origins(data).values() if origin.capture == capture_id}
    removed = [
        path
        for path in _files(data)
        if path.stem == _copy_name(capture_id) or (digests and file_digest(path.read_bytes()) in digests)
    ]
    for path in removed:
        path.unlink()
    remove_origin(data, capture_id)
    return removed


def _copy_name(capture_id: str) -> str:
    return f"capture-{capture_id}"


def _files(data: Path) -> Iterable[Path]:
    for folder, names in _walk(data):
        yield from (path for name in names if (path := folder / name).is_file())


def _walk(data: Path) -> Iterable[tuple[Path, Sequence[str]]]:
    """Folders in the photo folder with the names of their files, without those that ingestion ignores.

    Links to folders are followed, as in ingestion.
    """
    seen = set()
    for folder, folders, names in os.walk(data, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield Path(folder), sorted(name for name in names if not is_ignored(name))


def _breed_folder(data: Path, breed: str, new_breed: bool) -> Path:
    """Return the folder of a breed; of several, such as those of splits, the one with the most files."""
    files = {folder: len(names) for folder, names in _walk(data) if names and folder != data}
    folders = sorted(files, key=lambda folder: -files[folder])
    if not folders:
        raise InboxError(f"{data}: no photos; pass the photo folder, which has one folder per breed")
    if own := next((folder for folder in folders if printable(folder.name) == breed), None):
        return own
    names = sorted({printable(folder.name) for folder in folders})
    same = [name for name in names if spelling(name) == spelling(breed)]
    if new_breed and not same:
        if not spelling(breed) or "/" in breed or is_ignored(breed) or not is_one_line(breed):
            raise InboxError(f"{breed!a}: not a name for a folder; choose another breed name")
        return folders[0].parent / breed
    near = same or difflib.get_close_matches(breed, names) or names
    hint = "" if same else "; to add a breed, pass --new-breed"
    raise InboxError(f"{data} has no folder of the breed {breed!r}; folders are {', '.join(map(repr, near[:5]))}{hint}")


def _breed_or_none(feedback: str) -> str | None:
    return None if feedback == NOT_A_CAT else feedback
