"""Schemas of the JSON requests and responses, and the parts of the OpenAPI document that FastAPI cannot derive."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.gateway.problems import Problem

_MODEL = {"name": "catbreeds", "version": 3}
_PREDICTIONS = [{"breed": "Siamese", "probability": 0.91}, {"breed": "Birman", "probability": 0.06}]
_TOKEN = "20261130-q0bS5vYJx2mC4nD8rT1wZkLhPfG7aEuV"
_ANSWER = {
    "predictions": _PREDICTIONS,
    "prediction_set": ["Siamese"],
    "unfamiliar": False,
    "captured": {"token": _TOKEN},
}
_ID = "6f1c0a52f0e94d1e9a3b0c8d7e6f5a41"


class ModelVersion(BaseModel):
    """The model that made the prediction."""

    name: str
    version: int


class BreedProbability(BaseModel):
    """A breed and its probability."""

    breed: str
    probability: float = Field(ge=0, le=1)


class Captured(BaseModel):
    """A photo that the gateway stores, so that the model can be improved."""

    token: str = Field(description="Secret that authorizes feedback on the photo and its deletion.")


class _Answer(BaseModel):
    predictions: list[BreedProbability] = Field(description="Breeds, most probable first.")
    prediction_set: list[str] | None = Field(
        description="Breeds that the photo may show, most probable first. The breed of a cat is among them in about "
        "a given share of new photos like those of the data set, 0.95 by default. `top_k` does not affect it. Null "
        "if the version has no prediction sets."
    )
    unfamiliar: bool | None = Field(
        description="Whether the photo is unlike all photos that the model was trained on, as most photos without a "
        "cat are. Most cats of other breeds are not detected. Null if the version does not detect unfamiliar photos."
    )
    captured: Captured = Field(
        None, description="Only if the gateway stores the photo with the answer; see `/v1/feedback`."
    )


class PredictionResponse(_Answer):
    """Predictions for one photo."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": _MODEL, **_ANSWER, "request_id": _ID}]})

    model: ModelVersion
    request_id: str


class PhotoPredictions(_Answer):
    """Predictions for one of several photos."""

    photo: str = Field(description="File name of the photo.")


class BatchPredictionResponse(BaseModel):
    """Predictions for several photos, in the order of the request, all made by the same version of the model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": _MODEL,
                    "photos": [{"photo": "a.jpg", **_ANSWER}],
                    "request_id": _ID,
                }
            ]
        }
    )

    model: ModelVersion
    photos: list[PhotoPredictions]
    request_id: str


class Feedback(BaseModel):
    """Feedback on a captured photo."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"token": _TOKEN, "breed": "Birman"}]}
    )

    token: str = Field(description="Token in `captured` of the answer.")
    breed: str = Field(description="The breed that the photo shows, one of those in the answer; `not a cat`; `unsure`.")

    @classmethod
    def from_json(cls, body: bytes) -> "Feedback":
        """Parse a request body.

        Raises:
            Problem: If it is not JSON, or a field is missing, unknown or invalid.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            field = first["loc"][-1] if first["loc"] else "the body"
            raise Problem(422, "invalid_feedback", f"{field}: {first['msg']}") from None


class ReadinessResponse(BaseModel):
    """The model that serves predictions."""

    model: ModelVersion


class ProblemDetails(BaseModel):
    """Details of an error (RFC 9457)."""

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
    reason: str = Field(description="Machine-readable identifier of the error.")
    detail: str = Field(description="Human-readable explanation of the error.")
    photo: str | None = Field(description="File name of the photo that caused the error, if the request was a form.")
    request_id: str


def problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI responses with problem details; `_415="..."` describes status code 415."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {int(code[1:]): {"description": text, "content": content} for code, text in descriptions.items()}


def photo_body(several: bool) -> dict[str, Any]:
    """Return the OpenAPI request body: a form with one or several photos, or the bytes of a photo."""
    photo = {"type": "string", "contentMediaType": "application/octet-stream"}
    file = {"type": "array", "items": photo, "minItems": 1} if several else photo
    form = {"type": "object", "properties": {"file": file}, "required": ["file"], "additionalProperties": False}
    raw = {kind: {"schema": {}} for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}}}


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI request body for a JSON object."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema.model_json_schema()}}}}
