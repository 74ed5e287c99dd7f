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


def uncertainty_notes(answer: Answer) -> list[str]:
    """Return the notes for a prediction; empty if the set has one breed and the photo is familiar."""
    return [note for note in (could_be(answer), UNFAMILIAR if answer.unfamiliar else "") if note]
