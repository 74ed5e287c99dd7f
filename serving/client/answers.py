"""Types that all clients share: the requested model and the returned predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelChoice:
    """The model to query.

    Attributes:
        name: Name of the model.
        version: Version number; None selects the version by `label`.
        label: Version label, such as "stable". If version and label are both None, the model server uses its default.

    Raises:
        ValueError: If both a version and a label are given.
    """

    name: str = "catbreeds"
    version: int | None = None
    label: str | None = None

    def __post_init__(self):
        if self.version is not None and self.label is not None:
            raise ValueError("set either version or label, not both")


DEFAULT_MODEL = ModelChoice()


@dataclass(frozen=True)
class Model:
    """Name and version of the model that made a prediction, as the model server reports them."""

    name: str
    version: int


@dataclass(frozen=True)
class Prediction:
    """A breed and its probability, 0 to 1."""

    breed: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """The predictions for one photo.

    Attributes:
        model: Model that made the predictions.
        predictions: Breeds with their probabilities, most probable first.
        request_id: ID of the request in the gateway's log; None without a gateway.
    """

    model: Model
    predictions: tuple[Prediction, ...]
    request_id: str | None = None

    @property
    def best(self) -> Prediction:
        """The most probable breed."""
        return self.predictions[0]


def rank(breeds: Sequence[str], probabilities: Sequence[float], top_k: int | None) -> tuple[Prediction, ...]:
    """Return the `top_k` most probable breeds, most probable first; all breeds if `top_k` is None.

    Raises:
        ValueError: If there are no breeds, or a probability is not finite.
    """
    if not breeds or not all(map(math.isfinite, probabilities)):
        raise ValueError("no breeds, or probabilities that are not finite")
    pairs = sorted(zip(breeds, probabilities, strict=True), key=lambda pair: -pair[1])
    return tuple(Prediction(breed, probability) for breed, probability in pairs[:top_k])
