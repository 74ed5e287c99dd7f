"""Photos with known answers, which travel with a version: what a server must answer before anybody else asks it."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from serving.client import ModelChoice
from serving.client.grpc import GrpcClient
from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.registry import RegistryError

# Machines differ in the last digits; another model, another breed or another preprocessing does in the first.
_TOLERANCE = 0.02


class WrongAnswer(ValueError):
    """A server answers something else than the version did when it was measured."""


class Golden(NamedTuple):
    """A photo and its answer.

    Attributes:
        photo: JPEG or PNG bytes.
        breed: that was predicted.
        probability: of it.
    """

    photo: bytes
    breed: str
    probability: float


def golden_document(requests: Iterable[Golden]) -> list[dict[str, Any]]:
    """Content of GOLDEN_REQUESTS_FILE, before it is JSON."""
    return [{**one._asdict(), "photo": base64.b64encode(one.photo).decode()} for one in requests]


def read_golden(model: str | Path) -> list[Golden]:
    """The golden requests of the SavedModel in the directory `model`; none if nobody gave it some.

    Raises:
        RegistryError: the file cannot be read, or is damaged.
    """
    path = Path(model) / GOLDEN_REQUESTS_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Golden(base64.b64decode(row["photo"]), row["breed"], row["probability"]) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path}: cannot be read, or damaged: {error!r}; push the model again") from None


def ask_golden(address: str, name: str, version: int, requests: list[Golden]) -> None:
    """Asks a model server for a version by its number.

    Args:
        address: host:port of gRPC.
        name: of the model.
        version: that is loaded there.
        requests: at least one.

    Raises:
        WrongAnswer: it answers something else.
        ClientError: it does not answer.
    """
    with GrpcClient(address, ModelChoice(name, version)) as client:
        answers = client.predict_many([request.photo for request in requests])
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        probabilities = {prediction.breed: prediction.probability for prediction in answer.predictions}
        if abs(probabilities.get(request.breed, 0.0) - request.probability) > _TOLERANCE:
            raise WrongAnswer(
                f"golden photo {number} of version {version} is {answer.best.breed} with "
                f"{answer.best.probability:.3f}; measured was {request.breed} with {request.probability:.3f}"
            )
