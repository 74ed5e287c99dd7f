"""Captured photos in a folder, with the model's answers and the users' feedback.

The gateway writes a folder for each capture, `FOLDER/DAY/ID`, and deletes old ones. Replicas of the gateway can share
the folder. Each JSON file is one line, so that `cat FOLDER/*/*/answer.json` prints JSON Lines.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serving.client.answers import NOT_A_CAT, UNSURE, Answer, Model, Prediction

_LOG = logging.getLogger(__name__)
_ANSWER_FILE, _FEEDBACK_FILE, _REVIEW_FILE = "answer.json", "feedback.json", "review.json"
_PHOTO_FILES = ("photo.jpg", "photo.png")
_INCOMING = ".incoming"  # captures that are being written
# Files named by ID: captures with a copy in a photo folder, whose path the file has; those that their senders deleted.
_ACCEPTED, _DELETED = ".accepted", ".deleted"
_MAX_INCOMING_SECONDS = 3600
_SECONDS_PER_DAY = 24 * 3600
_TOKEN = re.compile(r"(\d{8})-[\w-]{32}", re.ASCII)
_ID = re.compile(r"(\d{8})-[0-9a-f]{20}")


class UnknownBreed(ValueError):
    """The model that answered does not know the breed of the feedback; the message lists the accepted values."""


class NoCapture(LookupError):
    """There is no such capture: the token or ID is wrong, or the capture expired, was deleted, or was not stored."""


class DamagedCapture(ValueError):
    """A file of a capture is damaged; the message names the folder."""


@dataclass(frozen=True)
class Review:
    """Decision of a reviewer on a captured photo.

    Attributes:
        breed: Breed of the accepted photo; None if it was rejected.
        reviewer: Name of the reviewer.
        time: Time of the decision, ISO 8601 with time zone.
    """

    breed: str | None
    reviewer: str
    time: str


@dataclass(frozen=True)
class Capture:
    """A captured photo.

    Attributes:
        id: ID, derived from the token. It does not authorize anything.
        reason: Why the photo was captured; see `serving.capture_reasons`.
        time: Time of the answer, ISO 8601 with time zone.
        answer: The model's answer, with all breeds.
        feedback: Breed from the user, NOT_A_CAT or UNSURE; None without feedback.
        photo: Path of the photo: JPEG or PNG, as the model received it, without metadata.
        review: Decision of a reviewer; None before it.
    """

    id: str
    reason: str
    time: str
    answer: Answer
    feedback: str | None
    photo: Path
    review: Review | None = None


class CaptureStore:
    """The folder of the captures.

    Args:
        folder: Path of the folder; it is created when the first capture is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, token: str, photo: bytes, answer: Answer, reason: str) -> int:
        """Write a capture. Readers see it complete or not at all, even after a crash.

        Args:
            token: Token from `new_token`.
            photo: JPEG or PNG bytes without metadata.
            answer: Answer with all breeds.
            reason: See `serving.capture_reasons`.

        Returns:
            Size on disk in bytes.

        Raises:
            OSError: If it cannot be written; nothing remains.
        """
        capture_id = id_of(token)
        incoming = self.folder / _INCOMING / f"{capture_id}-{secrets.token_hex(4)}"
        row = {
            "id": capture_id,
            "reason": reason,
            "time": now(),
            "request_id": answer.request_id,
            "model": asdict(answer.model),
            "predictions": [asdict(prediction) for prediction in answer.predictions],
            "prediction_set": answer.prediction_set,
            "unfamiliar": answer.unfamiliar,
        }
        try:
            incoming.mkdir(parents=True)
            _write(incoming / _PHOTO_FILES[not photo.startswith(b"\xff\xd8")], photo)
            _write(incoming / _ANSWER_FILE, _one_line(row).encode())
            size = _size(incoming)
            target = self._path(capture_id)
            target.parent.mkdir(exist_ok=True)
            incoming.rename(target)
        except OSError:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        return size

    def write_feedback(self, capture_id: str, breed: str) -> Capture:
        """Store the user's feedback; it replaces earlier feedback.

        Args:
            capture_id: ID of the capture.
            breed: One of the breeds in the answer, NOT_A_CAT or UNSURE.

        Returns:
            The capture with the feedback.

        Raises:
            NoCapture: If there is no such capture.
            UnknownBreed: If the model that answered does not know the breed.
            OSError: If the feedback cannot be written.
        """
        capture = self.read(capture_id)
        breeds = sorted(prediction.breed for prediction in capture.answer.predictions)
        if breed not in (*breeds, NOT_A_CAT, UNSURE):
            raise UnknownBreed(f"not one of {', '.join(breeds)}, {NOT_A_CAT!r} or {UNSURE!r}")
        self._replace(capture_id, _FEEDBACK_FILE, {"breed": breed, "time": now()})
        return self.read(capture_id)

    def write_review(self, capture_id: str, review: Review) -> None:
        """Store a reviewer's decision; it replaces an earlier one.

        Raises:
            NoCapture: If there is no such capture.
            OSError: If the decision cannot be written.
        """
        self._replace(capture_id, _REVIEW_FILE, asdict(review))

    def copied_to(self, capture_id: str) -> Path | None:
        """Return the photo folder that may have a copy of a capture; None if none has."""
        try:
            return Path(os.fsdecode((self.folder / _ACCEPTED / capture_id).read_bytes()))
        except FileNotFoundError:
            return None

    def set_copied_to(self, capture_id: str, photos: Path | None) -> None:
        """Record the photo folder that has, or is about to get, a copy of a capture.

        The record outlives the capture, so that `delete` finds it as long as the copy exists.
        """
        marker = self.folder / _ACCEPTED / capture_id
        if photos is None:
            marker.unlink(missing_ok=True)
            (self.folder / _DELETED / capture_id).unlink(missing_ok=True)
        else:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(os.fsencode(photos.resolve()))

    def deleted_with_copy(self) -> list[str]:
        """IDs of the captures that their senders deleted while a photo folder has a copy."""
        return sorted(path.name for path in self.folder.glob(f"{_DELETED}/*"))

    def ids(self) -> list[str]:
        """IDs of all captures and of those with a copy in a photo folder."""
        accepted = {path.name for kind in (_ACCEPTED, _DELETED) for path in self.folder.glob(f"{kind}/*")}
        return sorted({folder.name for folder in self._folders()} | accepted)

    def read(self, capture_id: str) -> Capture:
        """Read a capture.

        Raises:
            NoCapture: If there is no such capture.
            DamagedCapture: If one of its files is damaged.
        """
        folder = self._path(capture_id)
        try:
            return self._read(folder)
        except (FileNotFoundError, StopIteration):
            raise NoCapture(f"no capture {capture_id}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCapture(f"{folder}: damaged ({error!r}); delete the folder") from None

    def _read(self, folder: Path) -> Capture:
        row = json.loads((folder / _ANSWER_FILE).read_text(encoding="utf-8"))
        photo = next(folder / name for name in _PHOTO_FILES if (folder / name).exists())
        sets = row["prediction_set"]
        answer = Answer(
            Model(**row["model"]),
            tuple(Prediction(**prediction) for prediction in row["predictions"]),
            row["request_id"],
            None if sets is None else tuple(sets),
            row["unfamiliar"],
        )
        feedback, review = _read_json(folder / _FEEDBACK_FILE), _read_json(folder / _REVIEW_FILE)
        return Capture(
            row["id"],
            row["reason"],
            row["time"],
            answer,
            feedback and feedback["breed"],
            photo,
            review and Review(**review),
        )

    def read_all(self) -> Iterator[Capture]:
        """Yield all captures, oldest day first; skip those that are deleted meanwhile, and log damaged ones."""
        for folder in self._folders():
            try:
                yield self.read(folder.name)
            except NoCapture:
                continue
            except DamagedCapture as error:
                _LOG.warning("%s", error)

    def delete(self, capture_id: str) -> None:
        """Delete a capture, and the HTML pages in the folder that show it, such as that of `catbreeds drift`.

        If the photo folder has a copy, `deleted_with_copy` then lists the capture.

        Raises:
            NoCapture: If there is no such capture.
            OSError: If it cannot be deleted.
        """
        path, existed = self._path(capture_id), True
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            existed = False
        _delete_pages(self.folder, capture_id)
        # Afterwards, because `serving.inbox.accept` records the folder, copies the photo, and then checks the capture.
        if self.copied_to(capture_id) is not None:
            (self.folder / _DELETED).mkdir(exist_ok=True)
            (self.folder / _DELETED / capture_id).touch()
        elif not existed:
            raise NoCapture(f"no capture {capture_id}")

    def clean_up(self, max_bytes: int, days: int) -> int:
        """Delete captures older than `days`, then the oldest until the others fit into `max_bytes`.

        Reviewed captures are deleted before the others, and those without feedback before those with feedback. Remains
        of interrupted writes, and HTML pages older than `days`, are deleted too.

        Returns:
            Size of the remaining captures on disk, in bytes.
        """
        oldest_day = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y%m%d")
        captures = []
        for folder in self._folders():
            if folder.parent.name < oldest_day:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                value = (not (folder / _REVIEW_FILE).exists(), (folder / _FEEDBACK_FILE).exists())
                captures.append((value, (folder / _ANSWER_FILE).stat().st_mtime, _size(folder), folder))
        total = sum(size for _, _, size, _ in captures)
        for _, _, size, folder in sorted(captures):
            if total <= max_bytes:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
        for page in self.folder.glob("*.html"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - page.stat().st_mtime > days * _SECONDS_PER_DAY:
                    page.unlink()
        for incoming in self.folder.glob(f"{_INCOMING}/*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - incoming.stat().st_mtime > _MAX_INCOMING_SECONDS:
                    shutil.rmtree(incoming, ignore_errors=True)
        for day in self.folder.glob("[0-9]*"):
            if day.name < oldest_day:
                with contextlib.suppress(OSError):  # another replica deletes it too, or it is not empty
                    day.rmdir()
        return total

    def _folders(self) -> Iterator[Path]:
        for day in sorted(self.folder.glob("[0-9]*")):
            with contextlib.suppress(FileNotFoundError):
                yield from sorted(path for path in day.iterdir() if _ID.fullmatch(path.name))

    def _path(self, capture_id: str) -> Path:
        match = _ID.fullmatch(capture_id)
        if match is None:
            raise NoCapture(f"no capture {capture_id}")
        return self.folder / match[1] / capture_id

    def _replace(self, capture_id: str, name: str, row: dict[str, Any]) -> None:
        path = self._path(capture_id) / name
        temporary = path.with_name(f".{name}-{secrets.token_hex(4)}")
        try:
            temporary.write_text(_one_line(row), encoding="utf-8")
            temporary.rename(path)
        except FileNotFoundError:
            raise NoCapture(f"no capture {capture_id}") from None
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _delete_pages(folder: Path, capture_id: str) -> None:
    """Delete the HTML pages directly in a folder that show a capture."""
    for page in folder.glob("*.html"):
        with contextlib.suppress(FileNotFoundError):
            if capture_id in page.read_text(encoding="utf-8", errors="replace"):
                page.unlink()


def new_token() -> str:
    """Return a new token: a secret that authorizes feedback on a capture and its deletion."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_urlsafe(24)}"


def id_of(token: str) -> str:
    """Return the ID of the capture with this token.

    Raises:
        NoCapture: If `token` is not a token.
    """
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise NoCapture("not a token")
    return f"{match[1]}-{hashlib.sha256(token.encode()).hexdigest()[:20]}"


def _write(path: Path, content: bytes) -> None:
    """Write a file to the disk, so that it is complete even if the machine fails afterwards."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def now() -> str:
    """Return the current time, ISO 8601 with time zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _one_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _size(folder: Path) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
