"""Capture of answered photos for review: chosen for each answer, written in the background."""

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from serving import captures
from serving.capture_reasons import RANDOM_SHARE, UNCERTAIN
from serving.captures import Capture, CaptureStore, NoCapture, UnknownBreed
from serving.client.answers import NOT_A_CAT, UNSURE, Answer
from serving.drift_result import read_drift_result
from serving.gateway.metrics import Metrics
from serving.gateway.problems import Problem
from serving.gateway.settings import Settings
from serving.photo_normalization import remove_metadata

_LOG = structlog.get_logger()
_MAX_PENDING_BYTES = 32 * 2**20  # photos that wait to be written; further ones are dropped
_CLEAN_UP_SECONDS = 600
_KEPT_SHARE = 0.95  # of the maximum size, so that a full folder is not cleaned up for every capture


class Captures:
    """Captures of one gateway process. A slow, full or broken disk neither delays nor fails predictions.

    One thread does all work on the folder in order, so that feedback finds the capture that it is about.

    Args:
        settings: Settings with the folder, the share and the limits; without a folder, nothing is captured.
        metrics: Metrics to update.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings, self._metrics = settings, metrics
        self._store = CaptureStore(Path(settings.capture_folder)) if settings.capture_folder else None
        self._thread = ThreadPoolExecutor(1, "captures")
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._used_bytes = 0
        self._failing = False

    def capture(self, photo: bytes, answer: Answer) -> str | None:
        """Capture a photo if it belongs to the random share, or if the model is uncertain about it.

        Args:
            photo: The photo as the model received it.
            answer: Answer with all breeds and the request ID.

        Returns:
            Token for feedback and deletion; None if the photo is not captured.
        """
        reason = self._reason(answer) if self._store else None
        if reason is None:
            return None
        with self._lock:
            if self._pending_bytes + len(photo) > _MAX_PENDING_BYTES:
                self._metrics.captures_dropped.labels("busy").inc()
                return None
            self._pending_bytes += len(photo)
        token = captures.new_token()
        self._thread.submit(self._write, token, photo, answer, reason)
        return token

    async def write_feedback(self, token: str, breed: str) -> None:
        """Store a user's feedback on a captured photo.

        Raises:
            Problem: If there is no such capture, the breed is invalid, or the folder does not respond.
        """

        def write(store: CaptureStore) -> Capture:
            return store.write_feedback(captures.id_of(token), breed)

        capture = await self._run(write)
        self._metrics.feedback.labels(_verdict(capture)).inc()
        structlog.contextvars.bind_contextvars(capture=capture.id, feedback=breed)

    async def delete(self, token: str) -> None:
        """Delete a captured photo with its answer and feedback.

        Raises:
            Problem: If there is no such capture, or the folder does not respond.
        """

        def delete(store: CaptureStore) -> str:
            capture_id = captures.id_of(token)
            store.delete(capture_id)
            return capture_id

        structlog.contextvars.bind_contextvars(capture=await self._run(delete))

    async def clean_up_regularly(self) -> None:
        """Delete expired captures and read the last drift result, now and every ten minutes. Runs until canceled."""
        while self._store:
            self._thread.submit(self._delete_expired)
            self._thread.submit(self._read_drift)
            await asyncio.sleep(_CLEAN_UP_SECONDS)

    async def close(self) -> None:
        """Wait until all pending captures are written."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _reason(self, answer: Answer) -> str | None:
        if random.random() < self._settings.capture_share:
            return RANDOM_SHARE
        return UNCERTAIN if self._settings.capture_uncertain and answer.is_uncertain else None

    def _write(self, token: str, photo: bytes, answer: Answer, reason: str) -> None:
        size = len(photo)
        try:
            photo = remove_metadata(photo)
            if not self._make_room(len(photo)):
                self._metrics.captures_dropped.labels("full").inc()
                return
            self._used_bytes += self._store.write(token, photo, answer, reason)
            self._metrics.captures.labels(reason).inc()
            self._failing = False
        except OSError as error:
            self._metrics.captures_dropped.labels("failed").inc()
            if not self._failing:  # one message per outage
                _LOG.error("cannot write captures", folder=str(self._store.folder), error=str(error))
            self._failing = True
        except Exception:  # a bug, which the executor would hide
            self._metrics.captures_dropped.labels("failed").inc()
            _LOG.exception("cannot capture a photo")
        finally:
            with self._lock:
                self._pending_bytes -= size

    def _make_room(self, size: int) -> bool:
        """Delete old captures if `size` more bytes would not fit. Return whether they fit."""
        limit = self._settings.capture_max_bytes
        if size <= limit < self._used_bytes + size:
            self._clean_up(max(0, int(_KEPT_SHARE * limit) - size))
        return self._used_bytes + size <= limit

    def _delete_expired(self) -> None:
        try:
            self._clean_up(self._settings.capture_max_bytes)
        except OSError as error:  # the executor would hide it
            _LOG.error("cannot delete expired captures", folder=str(self._store.folder), error=str(error))

    def _clean_up(self, max_bytes: int) -> None:
        self._used_bytes = self._store.clean_up(max_bytes, self._settings.capture_days)

    def _read_drift(self) -> None:
        try:
            self._metrics.set_drift(read_drift_result(self._store.folder))
        except (OSError, ValueError) as error:
            self._metrics.set_drift(None)
            _LOG.error("cannot read the result of catbreeds drift", error=str(error))

    async def _run(self, function: Callable[[CaptureStore], Any]) -> Any:
        """Run a function of the store in the thread, after all captures that are pending."""
        if self._store is None:
            raise _not_found()
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._thread, function, self._store)
        except NoCapture:
            raise _not_found() from None
        except UnknownBreed as error:
            raise Problem(422, "invalid_feedback", f"breed: {error}") from None
        except TimeoutError:
            raise Problem(504, "timed_out", "the folder of the captures is slow; retry later", retry_after=5) from None
        except OSError as error:
            _LOG.error("cannot access captures", folder=str(self._store.folder), error=str(error))
            raise Problem(503, "captures_not_available", "the captures are not available; retry later") from None


def _verdict(capture: Capture) -> str:
    if capture.feedback in (NOT_A_CAT, UNSURE):
        return capture.feedback.replace(" ", "_")
    return "right" if capture.feedback == capture.answer.best.breed else "wrong"


def _not_found() -> Problem:
    detail = "no capture has this token; it expired, was deleted, or could not be stored"
    return Problem(404, "no_such_capture", detail)
