"""The JSON documents of the API, and how OpenAPI shows them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_MODEL = {"name": "catbreeds", "version": 3}
_PREDICTIONS = [{"breed": "Siamese", "probability": 0.91}, {"breed": "Birman", "probability": 0.06}]
_ID = "6f1c0a52f0e94d1e9a3b0c8d7e6f5a41"


class ModelVersion(BaseModel):
    """The model that answered."""

    name: str
    version: int


class BreedProbability(BaseModel):
    """A breed and its probability."""

    breed: str
    probability: float = Field(ge=0, le=1)


class PredictionResponse(BaseModel):
    """The answer to one photo."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": _MODEL, "predictions": _PREDICTIONS, "request_id": _ID}]}
    )

    model: ModelVersion
    predictions: list[BreedProbability] = Field(description="most probable first")
    request_id: str


class PhotoPredictions(BaseModel):
    """One of several photos."""

    photo: str = Field(description="name of its file")
    predictions: list[BreedProbability] = Field(description="most probable first")


class BatchPredictionResponse(BaseModel):
    """The answer to several photos, in their order; one version of the model answered all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": _MODEL,
                    "photos": [{"photo": "a.jpg", "predictions": _PREDICTIONS}],
                    "request_id": _ID,
                }
            ]
        }
    )

    model: ModelVersion
    photos: list[PhotoPredictions]
    request_id: str


class ReadinessResponse(BaseModel):
    """The model that is ready to answer."""

    model: ModelVersion


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "title": "Unsupported Media Type",
                    "status": 415,
                    "reason": "not_an_image",
                    "detail": "not a JPEG, PNG, WebP, GIF, BMP or HEIC image",
                    "photo": "notes.txt",
                    "request_id": _ID,
                }
            ]
        }
    )

    title: str
    status: int
    reason: str = Field(description="one word for programs")
    detail: str = Field(description="a sentence for people")
    photo: str | None = Field(description="which of the photos, if the request was a form")
    request_id: str


def problems(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses: `_415="what it means"`."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {int(code[1:]): {"description": meaning, "content": content} for code, meaning in reasons.items()}


def photo_body(several: bool) -> dict[str, Any]:
    """OpenAPI's request body: a form with photos, or a photo as it is."""
    photo = {"type": "string", "contentMediaType": "application/octet-stream"}
    file = {"type": "array", "items": photo, "minItems": 1} if several else photo
    form = {"type": "object", "properties": {"file": file}, "required": ["file"], "additionalProperties": False}
    raw = {kind: {"schema": {}} for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}}}
