"""Sentences about the uncertainty of a prediction, for users."""

from serving.client.answers import Answer

UNFAMILIAR = "unlike all photos this model was trained on"
_MAX_NAMES = 5


def could_be(answer: Answer) -> str:
    """Return "could be X, Y or Z" if the prediction set has several breeds, otherwise an empty string."""
    if len(answer.prediction_set or ()) < 2:
        return ""
    if len(answer.prediction_set) > _MAX_NAMES:
        named = answer.prediction_set[: _MAX_NAMES - 1]
        return f"could be {', '.join(named)} or one of {len(answer.prediction_set) - len(named)} other breeds"
    *others, last = answer.prediction_set
    return f"could be {', '.join(others)} or {last}"


def uncertainty_note(answer: Answer) -> str:
    """Return a note about a photo that is unfamiliar or may show several breeds, otherwise an empty string.

    The set of an unfamiliar photo is not named: its coverage holds only for photos like those of the training.
    """
    return UNFAMILIAR if answer.unfamiliar else could_be(answer)
