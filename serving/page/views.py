"""Render predictions and errors."""

from collections.abc import Sequence

import altair as alt
import streamlit as st

from serving.client import (
    Answer,
    Busy,
    ClientError,
    NotServed,
    Prediction,
    RequestRejected,
    TimedOut,
    Unavailable,
    Unreachable,
)
from serving.client.wording import UNFAMILIAR, could_be
from serving.page.escaping import escape_markdown
from serving.page.photos import ChosenPhoto
from serving.photo_normalization import PhotoError, normalize_for_prediction

_MAX_BARS = 5
_ROW_HEIGHT = 44  # pixels per bar with its label
_POSSIBLE_COLOR, _OTHER_COLOR = "#c4622f", "#8f99a8"  # visible on light and dark backgrounds
_MAX_EXPANDED_ROWS = 10  # longer tables start collapsed

_MESSAGES = {
    Unreachable: ("The gateway is not reachable.", "The service behind this page is down or unreachable."),
    Busy: ("The service is busy.", "It is processing many photos. Try again in a moment."),
    NotServed: ("The model is not available.", "The gateway is running, but no model is loaded. Try again later."),
    Unavailable: ("The model is not available.", "The gateway is running, but no model server is. Try again later."),
    TimedOut: ("The prediction timed out.", "The model is slow or overloaded. Try again in a moment."),
    RequestRejected: ("The gateway rejected the request.", "Contact the operator of this page."),
    ClientError: ("The prediction failed.", "Contact the operator of this page."),
}


def show_prediction(photo: ChosenPhoto, answer: Answer) -> None:
    """Render the best breed as heading, the photo, and next to it (on phones: below it) all breeds."""
    best = answer.best
    st.subheader(f"{escape_markdown(best.breed)}, {best.probability:.0%}", anchor=False)
    if note := _uncertainty_note(answer):
        st.warning(note, icon=":material/help:")
    left, right = st.columns([2, 3], gap="medium")
    with left:
        # The normalized photo, as the model receives it: upright, and small enough for a phone.
        st.image(normalize_for_prediction(photo.content), caption=escape_markdown(photo.name), width="stretch")
    with right:
        st.altair_chart(_bars(answer), width="stretch")
        breeds = len(answer.predictions)
        with st.expander(f"All {breeds} breeds", expanded=breeds <= _MAX_EXPANDED_ROWS):
            st.table([{"Breed": row.breed, "Probability": f"{row.probability:.1%}"} for row in answer.predictions])
        st.caption(
            f"Model {answer.model.name}, version {answer.model.version}. The model distinguishes {breeds} breeds and "
            f"always predicts one of them, even if the photo does not show a cat. Request ID: {answer.request_id}."
        )


def _uncertainty_note(answer: Answer) -> str:
    """Return a note as Markdown about a photo that is unfamiliar or may show several breeds, otherwise ""."""
    if not answer.is_uncertain:
        return ""
    if answer.unfamiliar:
        return f"This photo is {UNFAMILIAR}. Check that it shows one cat, large and in focus."
    if answer.prediction_set is None:
        return _note_without_set(answer.predictions)
    return escape_markdown(f"This {could_be(answer)}.")


def _note_without_set(predictions: Sequence[Prediction]) -> str:
    """Return the note about an uncertain prediction of a version without prediction sets."""
    rest = ", ".join(f"{escape_markdown(other.breed)} {other.probability:.0%}" for other in predictions[1:3])
    return f"The model is unsure. The cat may be of another breed ({rest}), or of a breed outside the training data."


def show_photo_error(error: PhotoError) -> None:
    """Render the reason why a photo cannot be used."""
    # The client calls a photo without a path "photo 1".
    reason = str(error).removeprefix("photo 1: ")
    st.error(f"**This photo cannot be used:** {escape_markdown(reason)}.", icon=":material/image_not_supported:")


def show_client_error(error: ClientError) -> None:
    """Render the reason for a failed request, and a button to try again."""
    title, text = next(message for kind, message in _MESSAGES.items() if isinstance(error, kind))
    st.error(f"**{title}** {text}", icon=":material/cloud_off:")
    st.button("Try again")


def _bars(answer: Answer) -> alt.LayerChart:
    """Bars of the most probable breeds; those that the photo may show are highlighted."""
    predictions = answer.predictions[:_MAX_BARS]
    possible = () if answer.unfamiliar else answer.prediction_set or (answer.best.breed,)
    rows = [
        {"breed": row.breed, "probability": row.probability, "possible": row.breed in possible} for row in predictions
    ]
    # Streamlit's default colors are faint in axes, and other text is black even in the dark theme.
    text_color = "white" if st.context.theme.type == "dark" else "black"
    names = alt.Axis(title=None, ticks=False, domain=False, labelLimit=150, labelFontSize=14, labelColor=text_color)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1.15], nice=False), axis=None),
        y=alt.Y("breed:N", sort=None, axis=names),
        tooltip=[alt.Tooltip("breed:N"), alt.Tooltip("probability:Q", format=".1%")],
    )
    color = alt.condition("datum.possible", alt.value(_POSSIBLE_COLOR), alt.value(_OTHER_COLOR))
    bars = base.mark_bar(cornerRadiusEnd=4, size=22).encode(color=color)
    percentage = alt.Text("probability:Q", format=".0%")
    percentages = base.mark_text(align="left", dx=6, fontSize=14, color=text_color).encode(text=percentage)
    description = "Probability of each breed: " + ", ".join(f"{row.breed} {row.probability:.0%}" for row in predictions)
    return (bars + percentages).properties(height=_ROW_HEIGHT * len(rows), description=description)
