"""Golden requests: photos with their expected predictions, stored with a version.

Every server must return these predictions before the version receives requests from clients.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from serving.client import ModelChoice
from serving.client.grpc import GrpcClient
from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.registry import RegistryError

# Probabilities differ between machines in the last digits; a wrong model, breed or preprocessing changes the first
# digits.
_TOLERANCE = 0.02


class GoldenRequestFailed(ValueError):
    """A server's prediction differs from the one that was recorded for the version."""


class GoldenRequest(NamedTuple):
    """A photo and its expected prediction.

    Attributes:
        photo: JPEG or PNG bytes.
        breed: Expected breed.
        probability: Expected probability of the breed.
    """

    photo: bytes
    breed: str
    probability: float


def golden_requests_document(requests: Iterable[GoldenRequest]) -> list[dict[str, Any]]:
    """Return the JSON document for GOLDEN_REQUESTS_FILE."""
    return [{**request._asdict(), "photo": base64.b64encode(request.photo).decode()} for request in requests]


def read_golden_requests(model: str | Path) -> list[GoldenRequest]:
    """Read the golden requests of the SavedModel in the directory `model`; return [] if it has no such file.

    Raises:
        RegistryError: If the file cannot be read or is damaged.
    """
    path = Path(model) / GOLDEN_REQUESTS_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [GoldenRequest(base64.b64decode(row["photo"]), row["breed"], row["probability"]) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path}: unreadable or damaged: {error!r}; push the model again") from None


def check_golden_requests(address: str, model_name: str, version: int, requests: list[GoldenRequest]) -> None:
    """Send golden requests to a model server, addressed to the version's number, and compare the predictions.

    Args:
        address: Address of the server's gRPC API, host:port.
        model_name: Name of the model.
        version: Version that the server has loaded.
        requests: Golden requests, at least one.

    Raises:
        GoldenRequestFailed: If a prediction differs from the expected one.
        ClientError: If the server does not respond.
    """
    with GrpcClient(address, ModelChoice(model_name, version)) as client:
        answers = client.predict_many([request.photo for request in requests])
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        probabilities = {prediction.breed: prediction.probability for prediction in answer.predictions}
        if abs(probabilities.get(request.breed, 0.0) - request.probability) > _TOLERANCE:
            raise GoldenRequestFailed(
                f"golden request {number} of version {version}: predicted {answer.best.breed} with "
                f"{answer.best.probability:.3f}, expected {request.breed} with {request.probability:.3f}"
            )
