"""Errors as problem details (RFC 9457), without stack traces; 5xx only for errors that the client did not cause."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.client import ClientError, NotServed, TimedOut, Unavailable
from serving.photo_normalization import PhotoError

_LOG = structlog.get_logger()
_PHOTO_CODES = {"not_an_image": 415, "too_large": 413}


class Problem(Exception):
    """An error response.

    Args:
        code: HTTP status code.
        reason: Machine-readable identifier of the error.
        detail: Human-readable explanation.
        photo: Name of the photo that caused the error.
        retry_after: Seconds after which the client should retry.
        headers: Additional response headers.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        detail: str,
        photo: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(detail)
        self.code, self.reason, self.detail, self.photo = code, reason, detail, photo
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @classmethod
    def of_photo(cls, error: PhotoError, name: str | None) -> "Problem":
        """Return the problem for a photo that cannot be used."""
        # A raw body may be JSON or base64 by mistake, so the message includes the expected format.
        raw = name is None and error.kind == "not_an_image"
        hint = "; send the bytes of the photo, or a form with the field 'file'" if raw else ""
        return cls(_PHOTO_CODES.get(error.kind, 400), error.kind, f"{error}{hint}", photo=name)

    @classmethod
    def of_model_server(cls, error: ClientError) -> "Problem":
        """Return the problem for a failed request to the model server; only the log contains the server's message."""
        _LOG.warning("model server error", error=str(error))
        if isinstance(error, TimedOut):
            return cls(504, "timed_out", "the model server did not respond in time")
        if isinstance(error, NotServed):
            return cls(503, "model_not_served", "no model is ready; retry later", retry_after=5)
        if isinstance(error, Unavailable):
            return cls(503, "model_server_unavailable", "the model server is not available; retry later", retry_after=1)
        return cls(503, "model_server_failed", "the model server failed; contact the operator")

    def response(self, request_id: str) -> JSONResponse:
        """Return the response with the problem details."""
        document = {
            "title": HTTPStatus(self.code).phrase,
            "status": self.code,
            "reason": self.reason,
            "detail": self.detail,
            "photo": self.photo,
            "request_id": request_id,
        }
        return JSONResponse(document, self.code, self.headers, media_type="application/problem+json")


async def _handle_problem(request: Request, problem: Problem) -> JSONResponse:
    structlog.contextvars.bind_contextvars(reason=problem.reason, detail=problem.detail)
    return problem.response(request.state.request_id)


async def _handle_http(request: Request, error: HTTPException) -> JSONResponse:
    reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    problem = Problem(error.status_code, reason, str(error.detail), headers=error.headers)
    return await _handle_problem(request, problem)


async def _handle_validation(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    detail = f"{first['loc'][-1]}: {first['msg']}"
    return await _handle_problem(request, Problem(422, "invalid_parameter", detail))


HANDLERS: dict[Any, Any] = {
    Problem: _handle_problem,
    HTTPException: _handle_http,
    RequestValidationError: _handle_validation,
}
