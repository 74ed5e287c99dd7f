"""What is asked and what is answered, the same for every way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelChoice:
    """Which model is asked.

    Attributes:
        name: of the model.
        version: number; None: what `label` says, or without one what the server serves by default.
        label: such as stable.

    Raises:
        ValueError: both a version and a label.
    """

    name: str = "catbreeds"
    version: int | None = None
    label: str | None = None

    def __post_init__(self):
        if self.version is not None and self.label is not None:
            raise ValueError("say a version or a label, not both")


DEFAULT_MODEL = ModelChoice()


@dataclass(frozen=True)
class Model:
    """The model that answered, as the model server names it."""

    name: str
    version: int


@dataclass(frozen=True)
class Prediction:
    """A breed and its probability, 0 to 1."""

    breed: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What the model says of one photo.

    Attributes:
        model: which answered.
        predictions: most probable first.
        request_id: the gateway's, to find the request in its log; None without a gateway.
    """

    model: Model
    predictions: tuple[Prediction, ...]
    request_id: str | None = None

    @property
    def best(self) -> Prediction:
        """The most probable breed."""
        return self.predictions[0]


def rank(breeds: Sequence[str], probabilities: Sequence[float], top_k: int | None) -> tuple[Prediction, ...]:
    """The `top_k` most probable breeds, all if None; most probable first.

    Raises:
        ValueError: there are none, or a probability is no number.
    """
    if not breeds or not all(map(math.isfinite, probabilities)):
        raise ValueError("no breeds, or probabilities that are no numbers")
    pairs = sorted(zip(breeds, probabilities, strict=True), key=lambda pair: -pair[1])
    return tuple(Prediction(breed, probability) for breed, probability in pairs[:top_k])
