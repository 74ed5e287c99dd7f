"""Ready is who can predict: a photo is really sent to the model server."""

import asyncio
import io
import time

from PIL import Image

from serving.client import Model
from serving.gateway.predictor import Predictor
from serving.gateway.problems import Problem

_TIMEOUT_SECONDS = 2.0
_KEPT_SECONDS = 1.0


class Readiness:
    """Asks at most once a second, however many probes there are.

    Args:
        predictor: who is asked.
    """

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._photo = _grey_photo()
        self._asking = asyncio.Lock()
        self._kept_until = 0.0
        self._outcome: Model | Problem | None = None

    async def model(self) -> Model:
        """The model that answered.

        Raises:
            Problem: none did.
        """
        async with self._asking:
            if time.monotonic() >= self._kept_until:
                try:
                    self._outcome = (await self._predictor.ask([self._photo], _TIMEOUT_SECONDS, top_k=1))[0].model
                except Problem as problem:
                    self._outcome = problem
                self._kept_until = time.monotonic() + _KEPT_SECONDS
        if isinstance(self._outcome, Problem):
            raise self._outcome
        return self._outcome


def _grey_photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "JPEG")
    return buffer.getvalue()
