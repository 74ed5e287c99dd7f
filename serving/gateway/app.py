"""The FastAPI application: routes, API keys, CORS and OpenAPI descriptions."""

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.gateway import uploads
from serving.gateway.capture import Captures
from serving.gateway.metrics import Metrics
from serving.gateway.predictor import AnsweredPhoto, Predictor
from serving.gateway.problems import HANDLERS, Problem
from serving.gateway.readiness import Readiness
from serving.gateway.request_middleware import RequestMiddleware
from serving.gateway.response_schemas import (
    BatchPredictionResponse,
    Feedback,
    PredictionResponse,
    ProblemDetails,
    ReadinessResponse,
    json_body,
    photo_body,
    problems,
)
from serving.gateway.settings import Settings

_DESCRIPTION = """Classifies photos of cats by breed.

    curl -F file=@photo.jpg http://localhost:8000/v1/breeds:predict
    curl -T photo.jpg -X POST http://localhost:8000/v1/breeds:predict

Supported formats are JPEG, PNG, WebP, GIF (first frame), BMP and HEIC. The format is detected from the content, not
from the file name or the content type. Every response has the headers `X-Request-ID` and `traceparent`. A request can
set both, to choose its ID and to continue a trace."""
_PHOTO_PROBLEMS = problems(
    _400="The photo or the form is damaged or empty, or the photo is too small.",
    _408="The request body did not arrive in time.",
    _413="The request exceeds the limit for bytes, pixels or photos.",
    _415="The photo has an unsupported format, or the body is compressed.",
    _422="A query parameter or a form field is invalid.",
    _503="Too many concurrent requests, or the model is not available.",
    _504="The prediction did not finish within the deadline.",
)
_CAPTURE_PROBLEMS = problems(
    _404="No capture has this token: it expired, was deleted, or could not be stored.",
    _422="A field or a query parameter is invalid.",
    _503="Too many concurrent requests, or the captures are not available.",
    _504="The folder of the captures did not respond in time.",
)
TopK = Annotated[int, Query(ge=1, le=1000, description="Number of breeds to return.")]


async def _reject_unknown_parameters(request: Request) -> None:
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    if unknown := [name for name in request.query_params if name not in known]:
        supported = f"supported: {', '.join(known)}" if known else "this endpoint has no parameters"
        raise Problem(422, "invalid_parameter", f"{unknown[0][:100]}: unknown query parameter; {supported}")


predictions = APIRouter(responses=_PHOTO_PROBLEMS, dependencies=[Depends(_reject_unknown_parameters)])
captures = APIRouter(
    responses=_CAPTURE_PROBLEMS, dependencies=[Depends(_reject_unknown_parameters)], tags=["captured photos"]
)
operations = APIRouter()


def create_app(settings: Settings) -> FastAPI:
    """Create the application, which connects to the model server at startup and is ready once that server is."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        predictor, store = Predictor(settings, metrics), Captures(settings, metrics)
        readiness = Readiness(predictor)
        state = {"settings": settings, "predictor": predictor, "readiness": readiness, "captures": store}
        cleaning = asyncio.create_task(store.clean_up_regularly())
        yield state | {"metrics": metrics}
        cleaning.cancel()
        await predictor.close()
        await store.close()

    app = FastAPI(
        title="catbreeds gateway",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        redoc_url=None,
        responses={"4XX": {"model": ProblemDetails, "description": "The request is invalid."}},
    )
    for router in (predictions, captures):
        app.include_router(router, **_authentication(settings.api_keys))
    app.include_router(operations)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "traceparent", "Retry-After"],
        )
    app.add_middleware(RequestMiddleware, metrics=metrics)
    return app


def _authentication(api_keys: Sequence[str]) -> dict[str, Any]:
    """Return the router arguments that require one of the API keys, which are given as SHA-256 digests."""
    if not api_keys:
        return {}
    scheme = HTTPBearer(auto_error=False, description="An API key.")

    async def require_key(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        digest = hashlib.sha256((credentials.credentials if credentials else "").encode()).hexdigest()
        if digest not in api_keys:
            detail = "the API key is missing or invalid; send the header Authorization: Bearer KEY"
            raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    return {
        "dependencies": [Depends(require_key)],
        "responses": problems(_401="The API key is missing or invalid."),
    }


@predictions.post(
    "/v1/breeds:predict",
    response_model=PredictionResponse | BatchPredictionResponse,
    openapi_extra=photo_body(several=True),
)
async def predict(request: Request, top_k: TopK = 5) -> JSONResponse:
    """Predict the breed of one or several photos.

    For one photo, the response has `predictions`, most probable breed first, `prediction_set`, `unfamiliar` and, if
    the gateway stores the photo, `captured`. For a form with several photos, it has `photos`, with these values for
    each photo.
    """
    answered = await request.state.predictor.predict(request)
    model, request_id = dataclasses.asdict(answered[0].answer.model), request.state.request_id
    rows = [_to_json(photo, top_k, request.state.captures) for photo in answered]
    if len(rows) == 1:
        return JSONResponse({"model": model, **rows[0], "request_id": request_id})
    photos = [{"photo": photo.name, **row} for photo, row in zip(answered, rows, strict=True)]
    return JSONResponse({"model": model, "photos": photos, "request_id": request_id})


def _to_json(photo: AnsweredPhoto, top_k: int, captures: Captures) -> dict[str, Any]:
    answer = photo.answer
    row = {
        "predictions": [dataclasses.asdict(prediction) for prediction in answer.predictions[:top_k]],
        "prediction_set": answer.prediction_set,
        "unfamiliar": answer.unfamiliar,
    }
    token = captures.capture(photo.content, answer)
    return row | {"captured": {"token": token}} if token else row


@predictions.post("/predict", response_model=dict[str, float], openapi_extra=photo_body(several=False))
async def predict_probabilities(request: Request) -> JSONResponse:
    """Predict the breed of one photo, and return the probability of every breed, most probable first."""
    answered = await request.state.predictor.predict(request)
    if len(answered) > 1:
        raise Problem(422, "invalid_form", "this endpoint accepts one photo; /v1/breeds:predict accepts several")
    return JSONResponse({row.breed: row.probability for row in answered[0].answer.predictions})


@captures.post("/v1/feedback", status_code=204, openapi_extra=json_body(Feedback))
async def give_feedback(request: Request) -> None:
    """Report which breed a captured photo shows. Feedback replaces earlier feedback on the same photo."""
    with request.state.predictor.request_slot():
        feedback = Feedback.from_json(await uploads.read_body(request, request.state.settings))
        await request.state.captures.write_feedback(feedback.token, feedback.breed)


@captures.delete("/v1/captures/{token}", status_code=204)
async def delete_capture(request: Request, token: str) -> None:
    """Delete a captured photo with its answer and feedback."""
    with request.state.predictor.request_slot():
        await request.state.captures.delete(token)


@operations.head("/healthz", include_in_schema=False)
@operations.get("/healthz")
async def health() -> dict[str, str]:
    """Report that the gateway process is running, regardless of the model server (liveness)."""
    return {"status": "alive"}


@operations.head("/readyz", include_in_schema=False)
@operations.get(
    "/readyz",
    response_model=ReadinessResponse,
    responses=problems(_503="The model is not available.", _504="The model server did not respond in time."),
)
async def ready(request: Request) -> JSONResponse:
    """Report whether the model server has predicted a test photo within the last second (readiness)."""
    return JSONResponse({"model": dataclasses.asdict(await request.state.readiness.model())})


@operations.head("/metrics", include_in_schema=False)
@operations.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """Return the metrics in the Prometheus text format."""
    return PlainTextResponse(generate_latest(request.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
