"""Golden requests: photos with their expected predictions, stored with a version.

Every server must return these predictions before the version receives requests from clients. Values close to a
threshold may fall on either side of it on another machine; such a prediction set or flag is not expected to be equal.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serving.client import ModelChoice
from serving.client.grpc import GrpcClient
from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.precision import Tolerances
from serving.registry import RegistryError

# Absolute; the distance is the difference of two larger numbers, so it may be close to 0.
_SMALLEST_DISTANCE_TOLERANCE = 1.0


class GoldenRequestFailed(ValueError):
    """A server's prediction differs from the one that was recorded for the version."""


class GoldenRequest(NamedTuple):
    """A photo and its expected prediction.

    Attributes:
        photo: JPEG or PNG bytes.
        breed: Expected breed.
        probability: Expected probability of the breed.
        prediction_set: Expected prediction set, sorted; None if it is not checked.
        unfamiliar: Expected flag; None if it is not checked.
    """

    photo: bytes
    breed: str
    probability: float
    prediction_set: list[str] | None = None
    unfamiliar: bool | None = None


def golden_request(
    photo: bytes, outputs: Mapping[str, Any], explain: Mapping[str, Any], tolerances: Tolerances
) -> GoldenRequest:
    """Return the golden request for the outputs of the signature `explain`.

    Args:
        photo: JPEG or PNG bytes.
        outputs: Outputs for the photo by name.
        explain: `explain` of the model record.
        tolerances: Tolerances of the model.
    """
    probabilities = dict(zip(outputs["breeds"], outputs["probabilities"], strict=True))
    breed = max(probabilities, key=probabilities.__getitem__)
    return GoldenRequest(
        photo,
        breed,
        probabilities[breed],
        definite_set(outputs, explain, tolerances.golden_probability),
        definite_flag(outputs, explain, tolerances.golden_distance),
    )


def definite_set(outputs: Mapping[str, Any], explain: Mapping[str, Any], tolerance: float) -> list[str] | None:
    """Return the prediction set, sorted; None if there is none, or if a breed is close to its threshold.

    Args:
        outputs: Outputs of the signature `explain` for one photo, by name.
        explain: `explain` of the model record.
        tolerance: Difference in probability that counts as close.
    """
    if (threshold := explain["set_threshold"]) is None:
        return None
    # A threshold below the tolerance is far from improbable breeds, too.
    tolerance = min(tolerance, threshold / 2)
    *others, best = sorted(outputs["probabilities"])
    if any(abs(probability - min(threshold, best)) <= tolerance for probability in others):
        return None
    return sorted(breed for breed, in_set in zip(outputs["breeds"], outputs["in_set"], strict=True) if in_set)


def definite_flag(outputs: Mapping[str, Any], explain: Mapping[str, Any], tolerance: float) -> bool | None:
    """Return the flag for an unfamiliar photo; None if there is none, or if the photo is close to its threshold.

    Args:
        outputs: Outputs of the signature `explain` for one photo, by name.
        explain: `explain` of the model record.
        tolerance: Relative difference in distance that counts as close.
    """
    if (threshold := explain["unfamiliar_threshold"]) is None:
        return None
    is_close = math.isclose(
        outputs["unfamiliarity"], threshold, rel_tol=tolerance, abs_tol=_SMALLEST_DISTANCE_TOLERANCE
    )
    return None if is_close else outputs["unfamiliar"]


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
        return [
            GoldenRequest(
                base64.b64decode(row["photo"]),
                row["breed"],
                row["probability"],
                row.get("prediction_set"),  # absent in versions of earlier releases
                row.get("unfamiliar"),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path}: unreadable or damaged: {error!r}; push the model again") from None


def check_golden_requests(
    address: str, model_name: str, version: int, requests: list[GoldenRequest], tolerances: Tolerances
) -> None:
    """Send golden requests to a model server, addressed to the version's number, and compare the predictions.

    Args:
        address: Address of the server's gRPC API, host:port.
        model_name: Name of the model.
        version: Version that the server has loaded.
        requests: Golden requests, at least one.
        tolerances: Tolerances of the version.

    Raises:
        GoldenRequestFailed: If a prediction differs from the expected one.
        ClientError: If the server does not respond.
    """
    with GrpcClient(address, ModelChoice(model_name, version)) as client:
        answers = client.predict_many([request.photo for request in requests])
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        probabilities = {prediction.breed: prediction.probability for prediction in answer.predictions}
        if abs(probabilities.get(request.breed, 0.0) - request.probability) > tolerances.golden_probability:
            raise GoldenRequestFailed(
                f"golden request {number} of version {version}: predicted {answer.best.breed} with "
                f"{answer.best.probability:.3f}, expected {request.breed} with {request.probability:.3f}"
            )
        if request.prediction_set is not None and sorted(answer.prediction_set or ()) != request.prediction_set:
            raise GoldenRequestFailed(
                f"golden request {number} of version {version}: prediction set {sorted(answer.prediction_set or ())}, "
                f"expected {request.prediction_set}"
            )
        if request.unfamiliar is not None and answer.unfamiliar != request.unfamiliar:
            raise GoldenRequestFailed(
                f"golden request {number} of version {version}: unfamiliar is {answer.unfamiliar}, expected "
                f"{request.unfamiliar}"
            )
