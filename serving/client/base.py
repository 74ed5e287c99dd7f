"""The interface of the clients, and the functions that read and normalize photos for them."""

import abc
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.client.answers import Answer
from serving.names import printable
from serving.photo_normalization import MAX_BYTES, PhotoError, normalize_for_prediction

# The content of a photo's file, or its path.
PhotoLike = bytes | str | os.PathLike


class Client(abc.ABC):
    """A synchronous client. Several threads can share one."""

    def predict(self, photo: PhotoLike, top_k: int | None = None) -> Answer:
        """Predict the breed of one photo.

        Args:
            photo: Content of the photo's file, or its path.
            top_k: Number of breeds to return; None returns all.

        Raises:
            PhotoError: If the photo cannot be used.
            ClientError: If the server returns no prediction.
            OSError: If the file cannot be read.
        """
        return self.predict_many([photo], top_k)[0]

    @abc.abstractmethod
    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """Predict the breeds of several photos in one request, with one version of the model. See `predict`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def read_photos(photos: Sequence[PhotoLike]) -> list[bytes]:
    """Return the content of each photo's file.

    Raises:
        PhotoError: If a file exceeds the maximum size, or has no end, like /dev/zero.
        OSError: If a file cannot be read.
    """
    return [photo if isinstance(photo, bytes) else _read_file(photo) for photo in photos]


def _read_file(path: str | os.PathLike) -> bytes:
    with Path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PhotoError("too_large", f"{printable(str(path))}: the file is larger than {MAX_BYTES // 2**20} MB")
    return content


def photo_names(photos: Sequence[PhotoLike]) -> list[str]:
    """Return a printable name for each photo: its path, or for bytes "photo N", counted from 1."""
    return [f"photo {n}" if isinstance(photo, bytes) else printable(str(photo)) for n, photo in enumerate(photos, 1)]


def normalize_photos(photos: Sequence[PhotoLike]) -> list[bytes]:
    """Convert photos to the JPEG or PNG bytes that the model expects, as the gateway does.

    Raises:
        PhotoError: If a photo cannot be used; the message names the photo.
        OSError: If a file cannot be read.
    """
    normalized = []
    for name, content in zip(photo_names(photos), read_photos(photos), strict=True):
        try:
            normalized.append(normalize_for_prediction(content))
        except PhotoError as error:
            raise PhotoError(error.kind, f"{name}: {error}") from None
    return normalized
