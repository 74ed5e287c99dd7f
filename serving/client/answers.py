"""Types that all clients share: the requested model and the returned predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Feedback on a photo, other than a breed.
NOT_A_CAT = "not a cat"
UNSURE = "unsure"
_MIN_CONFIDENCE = 0.5  # below this, the other breeds together are more probable than the best one


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
        prediction_set: Breeds that the photo may show, most probable first. The breed of a cat is among them in
            about a given share of new photos like those of the data set, 0.95 by default. None if the version has
            no prediction sets.
        unfamiliar: Whether the photo is unlike all photos that the model was trained on. None if the version does not
            detect unfamiliar photos.
        token: Secret that authorizes feedback on the photo and its deletion, if the gateway stores the photo; see
            `serving.client.gateway.GatewayClient.give_feedback`. None if it does not.
    """

    model: Model
    predictions: tuple[Prediction, ...]
    request_id: str | None = None
    prediction_set: tuple[str, ...] | None = None
    unfamiliar: bool | None = None
    token: str | None = None

    @property
    def best(self) -> Prediction:
        """The most probable breed."""
        return self.predictions[0]

    @property
    def is_uncertain(self) -> bool:
        """Whether the photo is unfamiliar or may show several breeds.

        For versions without prediction sets: whether the other breeds together are more probable than the best one.
        """
        if self.prediction_set is None:
            return bool(self.unfamiliar) or self.best.probability < _MIN_CONFIDENCE
        return bool(self.unfamiliar) or len(self.prediction_set) > 1


def answer_of(
    model: Model,
    breeds: Sequence[str],
    probabilities: Sequence[float],
    in_set: Sequence[bool] | None = None,
    unfamiliar: bool | None = None,
    top_k: int | None = None,
) -> Answer:
    """Return the answer for the outputs of a model for one photo.

    Args:
        model: Model that made the predictions.
        breeds: Breeds in the order of the other outputs.
        probabilities: Probability of each breed.
        in_set: Whether each breed is in the prediction set; None if the version has no prediction sets.
        unfamiliar: Whether the photo is unfamiliar; None if the version does not detect that.
        top_k: Number of predictions to return; None returns all. It does not affect the prediction set.

    Raises:
        ValueError: If there are no breeds, a probability is not finite, or the outputs differ in length.
    """
    if not breeds or not all(map(math.isfinite, probabilities)):
        raise ValueError("no breeds, or probabilities that are not finite")
    flags = [False] * len(breeds) if in_set is None else in_set
    rows = sorted(zip(breeds, probabilities, flags, strict=True), key=lambda row: -row[1])
    return Answer(
        model,
        tuple(Prediction(breed, probability) for breed, probability, _ in rows[:top_k]),
        prediction_set=None if in_set is None else tuple(breed for breed, _, is_in_set in rows if is_in_set),
        unfamiliar=unfamiliar,
    )
