"""Middleware for every request: request ID, trace, access log, metrics, and the response to unhandled exceptions."""

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
# Probes and scrapers request these routes every few seconds, so they are logged at level debug.
_DEBUG_ROUTES = {"/healthz", "/readyz", "/metrics"}
_CLIENT_CLOSED_REQUEST = 499


class RequestMiddleware:
    """ASGI middleware that sets `request_id` and `trace` in `request.state`.

    Args:
        app: The wrapped ASGI application.
        metrics: Metrics to update.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection; connections other than HTTP pass through unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = Trace.from_headers(headers)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else secrets.token_hex(16)
        scope["state"] |= {"request_id": request_id, "trace": trace}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace.trace_id, span_id=trace.span_id)
        started, code = time.perf_counter(), None

        async def send_with_ids(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                MutableHeaders(scope=message).update({"X-Request-ID": request_id, "traceparent": trace.traceparent})
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        except ClientDisconnect:
            code = code or _CLIENT_CLOSED_REQUEST
        except Exception:
            _LOG.exception("unhandled exception")
            if code is None:
                problem = Problem(500, "internal", "internal error; the gateway's log has details for this request ID")
                await problem.response(request_id)(scope, receive, send_with_ids)
        finally:
            self._record(scope, code or _CLIENT_CLOSED_REQUEST, time.perf_counter() - started)

    def _record(self, scope: Scope, code: int, seconds: float) -> None:
        # Metrics use the route, not the path, because clients could create any number of series. So does the log if
        # there is a route, because a path can contain a token.
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, code).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        log = _LOG.debug if route in _DEBUG_ROUTES else _LOG.info
        path = scope["path"] if route == "none" else route
        log("request", method=scope["method"], path=path, code=code, seconds=round(seconds, 4))
