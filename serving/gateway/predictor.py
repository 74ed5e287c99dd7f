"""From a request to answers: limits, decoding off the event loop, and the model server within the deadline."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from fastapi import Request

from serving.client import Answer, ClientError, ModelChoice, NotServed
from serving.client.grpc import AsyncGrpcClient
from serving.gateway import uploads
from serving.gateway.metrics import Metrics
from serving.gateway.problems import Problem
from serving.gateway.routing import Routing
from serving.gateway.settings import Settings


class Predictor:
    """Answers requests. It must be made in the event loop that it works in.

    Args:
        settings: limits and addresses.
        metrics: told how long things took.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings, self._metrics = settings, metrics
        self._routing = Routing(settings)
        stable = self._routing.stable.label or "default"
        for series in (metrics.model_server_seconds, metrics.model_server_failures):
            series.labels(stable)  # there from the start, so that its rates begin at 0
        self._client = AsyncGrpcClient(settings.model_server)
        self._decoders = ThreadPoolExecutor(settings.decoders, "decoder")
        self._in_flight = 0

    async def predict(self, request: Request, top_k: int | None) -> list[tuple[str | None, Answer]]:
        """Name and answer of each photo of the request.

        Raises:
            Problem: there are none, and why.
            ClientDisconnect: nobody waits for them.
        """
        with self._slot():
            body = await uploads.read_body(request, self._settings)
            end = time.monotonic() + self._settings.deadline_seconds
            photos = await self._normalised(body, request.headers.get("Content-Type", ""))
            structlog.contextvars.bind_contextvars(bytes=len(body), photos=len(photos))
            del body
            contents = [photo.content for photo in photos]
            chosen = self._routing.choose(_key(request))
            answers = await self._ask_chosen(chosen, contents, end, top_k, request.state.trace.metadata())
            structlog.contextvars.bind_contextvars(version=answers[0].model.version)
            return [(photo.name, answer) for photo, answer in zip(photos, answers, strict=True)]

    async def ask(self, photos: Sequence[bytes], timeout: float, top_k: int | None = None) -> list[Answer]:
        """Asks the version in service about photos that are normalised. It is not counted as traffic.

        Raises:
            Problem: it does not answer.
        """
        try:
            return await self._client.predict_normalised(photos, self._routing.stable, timeout, top_k)
        except ClientError as error:
            raise Problem.of_model_server(error) from None

    async def _ask_chosen(
        self,
        chosen: ModelChoice,
        photos: Sequence[bytes],
        end: float,
        top_k: int | None,
        metadata: Sequence[tuple[str, str]],
    ) -> list[Answer]:
        label, started = chosen.label or "default", time.perf_counter()
        try:
            answers = await self._client.predict_normalised(photos, chosen, end - time.monotonic(), top_k, metadata)
        except NotServed as error:
            if chosen == self._routing.stable:
                self._metrics.model_server_failures.labels(label).inc()
                raise Problem.of_model_server(error) from None
            self._metrics.canary_fallbacks.inc()
            return await self._ask_chosen(self._routing.stable, photos, end, top_k, metadata)
        except ClientError as error:
            self._metrics.model_server_failures.labels(label).inc()
            raise Problem.of_model_server(error) from None
        finally:
            seconds = time.perf_counter() - started
            structlog.contextvars.bind_contextvars(model_server_seconds=round(seconds, 4))
        self._metrics.model_server_seconds.labels(label).observe(seconds)
        return answers

    async def close(self) -> None:
        """Closes connections and ends threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await self._client.close()

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if self._in_flight == self._settings.max_in_flight:
            raise Problem(503, "busy", "too many requests at a time; come back", retry_after=1)
        self._in_flight += 1
        try:
            with self._metrics.in_flight.track_inprogress():
                yield
        finally:
            self._in_flight -= 1

    async def _normalised(self, body: bytes, content_type: str) -> list[uploads.Upload]:
        def work() -> list[uploads.Upload]:
            with self._metrics.decode_seconds.time():
                return uploads.normalised(body, content_type, self._settings)

        # Waiting for a decoder included.
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._decoders, work)
        except TimeoutError:
            raise Problem(504, "timed_out", "there was no time left to decode the photo", retry_after=1) from None


def _key(request: Request) -> str:
    """What tells one asker from another, so that each stays with one version."""
    # Behind a load balancer the address of the connection is the load balancer's.
    forwarded = request.headers.get("X-Forwarded-For", "").partition(",")[0].strip()
    return request.headers.get("X-Request-Key") or forwarded or (request.client.host if request.client else "")
