"""The HTTP API."""

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

from serving.client import Prediction
from serving.gateway.metrics import Metrics
from serving.gateway.predictor import Predictor
from serving.gateway.problems import HANDLERS, Problem
from serving.gateway.readiness import Readiness
from serving.gateway.request_middleware import Observer
from serving.gateway.response_schemas import (
    BatchPredictionResponse,
    PredictionResponse,
    ProblemDetails,
    ReadinessResponse,
    photo_body,
    problems,
)
from serving.gateway.settings import Settings

_DESCRIPTION = """Send a photo of a cat, get its breed.

    curl -F file=@photo.jpg http://localhost:8000/v1/breeds:predict
    curl -T photo.jpg -X POST http://localhost:8000/v1/breeds:predict

JPEG, PNG, WebP, GIF (first frame), BMP and HEIC are known by their content. Each answer has the headers `X-Request-ID`
and `traceparent`, and continues those of the request."""
_PHOTO_PROBLEMS = problems(
    _400="The photo or the form is damaged, empty or too small.",
    _408="The request took too long to arrive.",
    _413="Too many bytes, pixels or photos.",
    _415="Not a photo of a known format, or the body is compressed.",
    _422="A parameter or a field of the form is wrong.",
    _503="Too many requests at a time, or no model is ready.",
    _504="There was no answer within the deadline.",
)
TopK = Annotated[int, Query(ge=1, le=1000, description="How many breeds to answer.")]


async def _refuse_unknown_parameters(request: Request) -> None:
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    if unknown := [name for name in request.query_params if name not in known]:
        there = f"there is {', '.join(known)}" if known else "this address has none"
        raise Problem(422, "invalid_parameter", f"{unknown[0][:100]}: no such parameter; {there}")


predictions = APIRouter(responses=_PHOTO_PROBLEMS, dependencies=[Depends(_refuse_unknown_parameters)])
operations = APIRouter()


def create_app(settings: Settings) -> FastAPI:
    """The application; it connects when it starts, and is ready when the model server is."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        predictor = Predictor(settings, metrics)
        yield {"predictor": predictor, "readiness": Readiness(predictor), "metrics": metrics}
        await predictor.close()

    app = FastAPI(
        title="catbreeds gateway",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        redoc_url=None,
        responses={"4XX": {"model": ProblemDetails, "description": "What was wrong with the request."}},
    )
    app.include_router(predictions, **_protection(settings.api_keys))
    app.include_router(operations)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "traceparent", "Retry-After"],
        )
    app.add_middleware(Observer, metrics=metrics)
    return app


def _protection(api_keys: Sequence[str]) -> dict[str, Any]:
    """What a router needs so that only who has a key gets through."""
    if not api_keys:
        return {}
    scheme = HTTPBearer(auto_error=False, description="An API key.")

    async def require_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        digest = hashlib.sha256((given.credentials if given else "").encode()).hexdigest()
        if digest not in api_keys:
            detail = "say Authorization: Bearer KEY, with a key that the gateway knows"
            raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    return {
        "dependencies": [Depends(require_key)],
        "responses": problems(_401="There is no key, or the gateway does not know it."),
    }


@predictions.post(
    "/v1/breeds:predict",
    response_model=PredictionResponse | BatchPredictionResponse,
    openapi_extra=photo_body(several=True),
)
async def predict(request: Request, top_k: TopK = 5) -> JSONResponse:
    """The breeds of a photo, most probable first; several photos in a form get `photos`, an answer each."""
    answers = await request.state.predictor.predict(request, top_k)
    model, request_id = dataclasses.asdict(answers[0][1].model), request.state.request_id
    documents = [_documents(answer.predictions) for _, answer in answers]
    if len(answers) == 1:
        return JSONResponse({"model": model, "predictions": documents[0], "request_id": request_id})
    photos = [{"photo": name, "predictions": found} for (name, _), found in zip(answers, documents, strict=True)]
    return JSONResponse({"model": model, "photos": photos, "request_id": request_id})


def _documents(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [{"breed": prediction.breed, "probability": prediction.probability} for prediction in predictions]


@predictions.post("/predict", response_model=dict[str, float], openapi_extra=photo_body(several=False))
async def predict_plainly(request: Request) -> JSONResponse:
    """Probability by breed, all breeds of one photo, most probable first."""
    answers = await request.state.predictor.predict(request, top_k=None)
    if len(answers) > 1:
        raise Problem(422, "invalid_form", "this address takes one photo; /v1/breeds:predict takes several")
    return JSONResponse({prediction.breed: prediction.probability for prediction in answers[0][1].predictions})


@operations.head("/healthz", include_in_schema=False)
@operations.get("/healthz")
async def health() -> dict[str, str]:
    """The process is alive, whatever the model server does."""
    return {"status": "alive"}


@operations.head("/readyz", include_in_schema=False)
@operations.get(
    "/readyz", response_model=ReadinessResponse, responses=problems(_503="It cannot predict.", _504="Nor soon.")
)
async def ready(request: Request) -> JSONResponse:
    """A photo was predicted a moment ago."""
    return JSONResponse({"model": dataclasses.asdict(await request.state.readiness.model())})


@operations.head("/metrics", include_in_schema=False)
@operations.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """For Prometheus."""
    return PlainTextResponse(generate_latest(request.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
