"""Readiness check: the gateway is ready once the model server has predicted a real photo."""

import asyncio
import io
import time

from PIL import Image

from serving.client import Model
from serving.gateway.predictor import Predictor
from serving.gateway.problems import Problem

_TIMEOUT_SECONDS = 2.0
_CACHE_SECONDS = 1.0


class Readiness:
    """Readiness of the gateway, cached for one second so that frequent probes do not load the model server.

    Args:
        predictor: Predictor that sends the photo.
    """

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._photo = _gray_photo()
        self._lock = asyncio.Lock()
        self._cached_until = 0.0
        self._outcome: Model | Problem | None = None

    async def model(self) -> Model:
        """Return the model that predicted the photo.

        Raises:
            Problem: If the model server did not predict it.
        """
        async with self._lock:
            if time.monotonic() >= self._cached_until:
                try:
                    self._outcome = (await self._predictor.predict_stable([self._photo], _TIMEOUT_SECONDS, top_k=1))[
                        0
                    ].model
                except Problem as problem:
                    self._outcome = problem
                self._cached_until = time.monotonic() + _CACHE_SECONDS
        if isinstance(self._outcome, Problem):
            raise self._outcome
        return self._outcome


def _gray_photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "JPEG")
    return buffer.getvalue()
