"""Origins of the photos that came from captures: `origins.jsonl` in the photo folder, one line per photo.

A line identifies its photo by the digest of the file, so that photos can be renamed, moved and archived.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from serving.capture_reasons import RANDOM_SHARE

ORIGINS_FILE = "origins.jsonl"
_LOCK_FILE = f".{ORIGINS_FILE}.lock"


class OriginsError(ValueError):
    """A file of origins is damaged; the message names the file and the line."""


@dataclass(frozen=True)
class Origin:
    """Origin of an accepted photo.

    Attributes:
        file_digest: SHA-256 of the photo file, in hex.
        capture: ID of the capture, derived from its token.
        reason: Why it was captured: see `serving.capture_reasons`.
        captured_at: Time of the answer, ISO 8601.
        version: Version of the model that answered.
        predicted: Breed that it predicted.
        feedback: Feedback of the user; None without feedback.
        breed: Breed that the reviewer decided on.
        reviewer: Name of the reviewer.
        decided_at: Time of the decision, ISO 8601.
        perceptual_hash: Perceptual hash of the photo in hex; see `serving.perceptual_hash`.
    """

    file_digest: str
    capture: str
    reason: str
    captured_at: str
    version: int
    predicted: str
    feedback: str | None
    breed: str
    reviewer: str
    decided_at: str
    perceptual_hash: str

    @property
    def is_train_only(self) -> bool:
        """Whether the photo may only be in train.

        Such a photo was captured because the model was uncertain about it. In eval and test, such photos would make
        every model look worse than it is on the photos that users send.
        """
        return self.reason != RANDOM_SHARE


def file_digest(data: bytes) -> str:
    """SHA-256 of the content of a file, in hex."""
    return hashlib.sha256(data).hexdigest()


def parse_origins(text: str, path: str) -> dict[str, Origin]:
    """Parse a file of origins.

    Args:
        text: Content of the file.
        path: Path of the file, for messages.

    Returns:
        Origins by file digest.

    Raises:
        OriginsError: If a line is damaged.
    """
    origins = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            origin = Origin(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise OriginsError(
                f"{path}: line {number} is damaged ({error}); restore the file, or delete the line and its photo"
            ) from None
        origins[origin.file_digest] = origin
    return origins


def read_origins(data: Path) -> dict[str, Origin]:
    """Read the origins of a photo folder; there are none without the file.

    Raises:
        OriginsError: If the file is damaged.
    """
    path = data / ORIGINS_FILE
    try:
        return parse_origins(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return {}


def add_origin(data: Path, origin: Origin) -> None:
    """Add an origin; it replaces the one of the same file or capture.

    Raises:
        OriginsError: If the file is damaged.
        OSError: If it cannot be written.
    """
    with _locked(data):
        others = (other for other in read_origins(data).values() if other.capture != origin.capture)
        _write(data, [*(other for other in others if other.file_digest != origin.file_digest), origin])


def remove_origin(data: Path, capture: str) -> None:
    """Remove the origin of a capture, if there is one; raise the same errors as `add_origin`."""
    with _locked(data):
        origins = read_origins(data).values()
        remaining = [origin for origin in origins if origin.capture != capture]
        if len(remaining) < len(origins):
            _write(data, remaining)


def as_row(origin: Origin) -> dict[str, Any]:
    """Return what reports say about the origin of a photo: all but the hashes."""
    return {key: value for key, value in asdict(origin).items() if key not in ("file_digest", "perceptual_hash")}


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    with FileLock(data / _LOCK_FILE):
        yield


def _write(data: Path, origins: Iterable[Origin]) -> None:
    """Replace the file at once, so that readers and crashes never see a part of it."""
    temporary = data / f".{ORIGINS_FILE}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(origin), ensure_ascii=False) + "\n" for origin in origins)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, data / ORIGINS_FILE)
