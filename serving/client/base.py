"""What the clients have in common: their methods, and how photos are read."""

import abc
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.client.answers import Answer
from serving.names import printable
from serving.photo import MAX_BYTES, PhotoError, normalise

# The content of a photo's file, or its path.
PhotoLike = bytes | str | os.PathLike


class Client(abc.ABC):
    """Asks and waits. Threads may share one."""

    def predict(self, photo: PhotoLike, top_k: int | None = None) -> Answer:
        """Asks for the breed of a photo.

        Args:
            photo: content of its file, or its path.
            top_k: how many breeds to answer; None: all.

        Raises:
            PhotoError: it is no photo that can be used.
            ClientError: there is no answer.
            OSError: the file cannot be read.
        """
        return self.predict_many([photo], top_k)[0]

    @abc.abstractmethod
    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """Asks for the breeds of photos in one request, which one version of the model answers; as `predict`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes its connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class AsyncClient(abc.ABC):
    """As Client, for asyncio: of one event loop, in which it must be made."""

    async def predict(self, photo: PhotoLike, top_k: int | None = None) -> Answer:
        """As `Client.predict`."""
        return (await self.predict_many([photo], top_k))[0]

    @abc.abstractmethod
    async def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """As `Client.predict_many`."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Closes its connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


def read(photos: Sequence[PhotoLike]) -> list[bytes]:
    """Contents of the files.

    Raises:
        PhotoError: a file is larger than any photo may be, or has no end, as /dev/zero.
        OSError: one cannot be read.
    """
    return [photo if isinstance(photo, bytes) else _content(photo) for photo in photos]


def _content(path: str | os.PathLike) -> bytes:
    with Path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PhotoError("too_large", f"{printable(str(path))}: the file is larger than {MAX_BYTES // 2**20} MB")
    return content


def names(photos: Sequence[PhotoLike]) -> list[str]:
    """What to call the photos: paths as they can be printed and sent, else numbers from 1 on."""
    return [f"photo {n}" if isinstance(photo, bytes) else printable(str(photo)) for n, photo in enumerate(photos, 1)]


def normalised(photos: Sequence[PhotoLike]) -> list[bytes]:
    """Photos as the model wants them; the gateway does the same.

    Raises:
        PhotoError: one cannot be used; the message names it.
    """
    ready = []
    for name, content in zip(names(photos), read(photos), strict=True):
        try:
            ready.append(normalise(content).data)
        except PhotoError as error:
            raise PhotoError(error.kind, f"{name}: {error}") from None
    return ready
