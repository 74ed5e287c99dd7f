"""What a visitor sees of an answer, and of its absence."""

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
from serving.page.escaping import escape_markdown
from serving.page.photos import Chosen
from serving.photo import PhotoError, normalise

_SHOWN = 5  # bars
_ROW = 44  # height of a bar and its name, pixels
_BEST, _OTHER = "#c4622f", "#8f99a8"  # colours that show on light and dark
_SURE = 0.5  # less for the best breed: more speaks against it than for it
_TABLE_OPEN = 10  # longer tables are folded

_TROUBLES = {
    Unreachable: ("The gateway does not answer.", "This page works, but what it asks is down or cannot be reached."),
    Busy: ("Many photos at a time.", "Everybody is asking right now: try again in a moment."),
    NotServed: ("No model is ready.", "The gateway answers, but no model is loaded yet: try again in a moment."),
    Unavailable: ("No model is ready.", "The gateway answers, but the model server does not: try again in a moment."),
    TimedOut: ("No answer in time.", "The model is slow or overloaded: try again in a moment."),
    RequestRejected: ("The gateway does not take requests of this page.", "Who runs the page must see to it."),
    ClientError: ("The answer cannot be understood.", "Who runs the page must see to it."),
}


def show_answer(photo: Chosen, answer: Answer) -> None:
    """The best breed in large, the photo, and beside or below it the other breeds."""
    best = answer.best
    st.subheader(f"{escape_markdown(best.breed)}, {best.probability:.0%}", anchor=False)
    if note := unsure(answer.predictions):
        st.warning(note, icon=":material/help:")
    left, right = st.columns([2, 3], gap="medium")
    with left:
        # As the model saw it: upright, and small enough for a phone.
        st.image(normalise(photo.content).data, caption=escape_markdown(photo.name), width="stretch")
    with right:
        st.altair_chart(_bars(answer.predictions[:_SHOWN]), width="stretch")
        breeds = len(answer.predictions)
        with st.expander(f"All {breeds} breeds", expanded=breeds <= _TABLE_OPEN):
            st.table([{"Breed": row.breed, "Probability": f"{row.probability:.1%}"} for row in answer.predictions])
        st.caption(
            f"Model {answer.model.name}, version {answer.model.version}. It knows {breeds} breeds and names one of "
            f"them, whatever the picture shows. Request {answer.request_id}."
        )


def unsure(predictions: Sequence[Prediction]) -> str:
    """A note if the model is unsure, else nothing."""
    best, *others = predictions
    if best.probability >= _SURE:
        return ""
    rest = ", ".join(f"{escape_markdown(other.breed)} {other.probability:.0%}" for other in others[:2])
    return f"The model is unsure. It may as well be another breed ({rest}), or one that the model does not know."


def show_refusal(error: PhotoError) -> None:
    """Why a photo is not used."""
    # The client numbers photos whose file it does not know.
    reason = str(error).removeprefix("photo 1: ")
    st.error(f"**This photo was refused:** {escape_markdown(reason)}.", icon=":material/image_not_supported:")


def show_trouble(error: ClientError) -> None:
    """Why there is no answer, and a way to ask again."""
    title, text = next(words for kind, words in _TROUBLES.items() if isinstance(error, kind))
    st.error(f"**{title}** {text}", icon=":material/cloud_off:")
    st.button("Try again")


def _bars(predictions: Sequence[Prediction]) -> alt.LayerChart:
    rows = [{"breed": row.breed, "probability": row.probability, "best": n == 0} for n, row in enumerate(predictions)]
    # Streamlit's own colours are faint in axes, and black in other texts also where the page is dark.
    ink = "white" if st.context.theme.type == "dark" else "black"
    names = alt.Axis(title=None, ticks=False, domain=False, labelLimit=150, labelFontSize=14, labelColor=ink)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1.15], nice=False), axis=None),
        y=alt.Y("breed:N", sort=None, axis=names),
        tooltip=[alt.Tooltip("breed:N"), alt.Tooltip("probability:Q", format=".1%")],
    )
    colour = alt.condition("datum.best", alt.value(_BEST), alt.value(_OTHER))
    bars = base.mark_bar(cornerRadiusEnd=4, size=22).encode(color=colour)
    share = alt.Text("probability:Q", format=".0%")
    shares = base.mark_text(align="left", dx=6, fontSize=14, color=ink).encode(text=share)
    description = "Probability of each breed: " + ", ".join(f"{row.breed} {row.probability:.0%}" for row in predictions)
    return (bars + shares).properties(height=_ROW * len(rows), description=description)
