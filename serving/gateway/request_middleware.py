"""Around every request: its id and trace, its line in the log, its place in the metrics, and the last resort."""

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.metrics import Metrics
from serving.gateway.problems import Problem
from serving.gateway.tracing import Trace

_LOG = structlog.get_logger()
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
# What somebody asks every few seconds is no news.
_QUIET = {"/healthz", "/readyz", "/metrics"}
_CLIENT_WENT_AWAY = 499


class Observer:
    """ASGI middleware. Below it, `request.state` has `request_id` and `trace`.

    Args:
        app: what it is around.
        metrics: counts the requests.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles what comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = Trace.continued(headers)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else secrets.token_hex(16)
        scope["state"] |= {"request_id": request_id, "trace": trace}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace.trace_id, span_id=trace.span_id)
        started, code = time.perf_counter(), None

        async def send_marked(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                MutableHeaders(scope=message).update({"X-Request-ID": request_id, "traceparent": trace.parent})
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            code = code or _CLIENT_WENT_AWAY
        except Exception:
            _LOG.exception("unexpected")
            if code is None:
                problem = Problem(500, "internal", "unexpected; the log tells more under this request id")
                await problem.response(request_id)(scope, receive, send_marked)
        finally:
            self._tell(scope, code or _CLIENT_WENT_AWAY, time.perf_counter() - started)

    def _tell(self, scope: Scope, code: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")  # not the path: anybody could invent one
        self._metrics.requests.labels(route, code).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        tell = _LOG.debug if route in _QUIET else _LOG.info
        tell("request", method=scope["method"], path=scope["path"], code=code, seconds=round(seconds, 4))
