"""Handle prediction requests: enforce limits, decode photos in threads, and query the model server."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog
from fastapi import Request

from serving.client import Answer, ClientError, ModelChoice, NotServed
from serving.client.grpc import AsyncGrpcClient
from serving.gateway import uploads
from serving.gateway.metrics import Metrics
from serving.gateway.problems import Problem
from serving.gateway.routing import Routing
from serving.gateway.settings import Settings


class AnsweredPhoto(NamedTuple):
    """A photo with its answer.

    Attributes:
        name: Name of its file; None if the photo is the whole body.
        content: Bytes of the photo, as the model received it.
        answer: Answer with all breeds.
    """

    name: str | None
    content: bytes
    answer: Answer


class Predictor:
    """Predictor of the breeds of the photos in a request. Create it in the event loop that uses it.

    Args:
        settings: Limits, and the address of the model server.
        metrics: Metrics to update.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings, self._metrics = settings, metrics
        self._routing = Routing(settings)
        stable = self._routing.stable.label or "default"
        for series in (metrics.model_server_seconds, metrics.model_server_failures):
            series.labels(stable)  # creates the series with the value 0, so that rates include the first request
        self._client = AsyncGrpcClient(settings.model_server)
        self._decoders = ThreadPoolExecutor(settings.decoders, "decoder")
        self._in_flight = 0

    async def predict(self, request: Request) -> list[AnsweredPhoto]:
        """Return the answer for each photo in the request.

        Raises:
            Problem: If the request fails.
            ClientDisconnect: If the client closed the connection.
        """
        with self.request_slot():
            body = await uploads.read_body(request, self._settings)
            deadline = time.monotonic() + self._settings.deadline_seconds
            photos = await self._read_photos(body, request.headers.get("Content-Type", ""))
            structlog.contextvars.bind_contextvars(bytes=len(body), photos=len(photos))
            del body
            contents = [photo.content for photo in photos]
            choice = self._routing.choose(_request_key(request))
            answers = await self._query(choice, contents, deadline, request.state.trace.metadata())
            structlog.contextvars.bind_contextvars(version=answers[0].model.version)
            return [
                AnsweredPhoto(
                    photo.name, photo.content, dataclasses.replace(answer, request_id=request.state.request_id)
                )
                for photo, answer in zip(photos, answers, strict=True)
            ]

    async def predict_stable(self, photos: Sequence[bytes], timeout: float, top_k: int | None = None) -> list[Answer]:
        """Predict the breeds of normalized photos with the stable version, without updating the metrics.

        Raises:
            Problem: If the model server returns no predictions.
        """
        try:
            return await self._client.predict_normalized(photos, self._routing.stable, timeout, top_k)
        except ClientError as error:
            raise Problem.of_model_server(error) from None

    async def _query(
        self,
        choice: ModelChoice,
        photos: Sequence[bytes],
        deadline: float,
        metadata: Sequence[tuple[str, str]],
    ) -> list[Answer]:
        label, started = choice.label or "default", time.perf_counter()
        try:
            answers = await self._client.predict_normalized(
                photos, choice, deadline - time.monotonic(), metadata=metadata
            )
        except NotServed as error:
            if choice == self._routing.stable:
                self._metrics.model_server_failures.labels(label).inc()
                raise Problem.of_model_server(error) from None
            self._metrics.canary_fallbacks.inc()
            return await self._query(self._routing.stable, photos, deadline, metadata)
        except ClientError as error:
            self._metrics.model_server_failures.labels(label).inc()
            raise Problem.of_model_server(error) from None
        finally:
            seconds = time.perf_counter() - started
            structlog.contextvars.bind_contextvars(model_server_seconds=round(seconds, 4))
        self._metrics.model_server_seconds.labels(label).observe(seconds)
        self._metrics.count_answers(label, answers)
        return answers

    async def close(self) -> None:
        """Close the connections and stop the decoder threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await self._client.close()

    @contextlib.contextmanager
    def request_slot(self) -> Iterator[None]:
        """Count a request as in flight while it is handled.

        Raises:
            Problem: If too many requests are in flight.
        """
        if self._in_flight == self._settings.max_in_flight:
            raise Problem(503, "busy", "too many concurrent requests; retry later", retry_after=1)
        self._in_flight += 1
        try:
            with self._metrics.in_flight.track_inprogress():
                yield
        finally:
            self._in_flight -= 1

    async def _read_photos(self, body: bytes, content_type: str) -> list[uploads.Upload]:
        def read() -> list[uploads.Upload]:
            with self._metrics.decode_seconds.time():
                return uploads.read_photos(body, content_type, self._settings)

        # The timeout includes the wait for a free decoder.
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._decoders, read)
        except TimeoutError:
            raise Problem(
                504, "timed_out", "the photos could not be decoded within the deadline", retry_after=1
            ) from None


def _request_key(request: Request) -> str:
    """Return the key that keeps a client on one version of the model."""
    # Behind a load balancer, the connection comes from the load balancer's address.
    forwarded = request.headers.get("X-Forwarded-For", "").partition(",")[0].strip()
    return request.headers.get("X-Request-Key") or forwarded or (request.client.host if request.client else "")
