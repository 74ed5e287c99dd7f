"""Buttons for feedback on a photo that the gateway stores."""

import streamlit as st

from serving.client import NOT_A_CAT, UNSURE, Answer, NoSuchCapture
from serving.client.gateway import GatewayClient
from serving.page.escaping import escape_markdown

_OTHER_CHOICES = {NOT_A_CAT: "Not a cat", UNSURE: "I am not sure"}


def ask_for_feedback(client: GatewayClient, answer: Answer) -> None:
    """Render the buttons, and send what the visitor chooses; a later choice replaces an earlier one.

    Args:
        client: Client of the gateway that answered.
        answer: Answer with a token.

    Raises:
        ClientError: If the gateway does not accept the feedback.
    """
    given = st.session_state.setdefault("feedback", {})  # token -> breed; None if the photo is no longer stored
    if answer.token in given and given[answer.token] is None:
        st.info("This photo is not stored any more.", icon=":material/delete:")
        return
    st.markdown("**Is the answer right?** This photo is stored to improve the model. Your answer helps.")
    with st.container(horizontal=True):
        is_right = st.button("Right", icon=":material/thumb_up:")
        other = _choose_breed(answer)
        is_deleted = st.button("Delete this photo", type="tertiary", icon=":material/delete:")
    try:
        if is_deleted:
            client.delete_capture(answer.token)
            given[answer.token] = None
        elif breed := answer.best.breed if is_right else other:
            client.give_feedback(answer.token, breed)
            given[answer.token] = breed
    except NoSuchCapture:
        given[answer.token] = None
    if answer.token not in given:
        return
    if (breed := given[answer.token]) is None:
        st.rerun()
    st.success(f"Thank you. Your answer: {escape_markdown(_OTHER_CHOICES.get(breed, breed))}.", icon=":material/check:")


def _choose_breed(answer: Answer) -> str | None:
    """Render the choice of another breed; return NOT_A_CAT, UNSURE or the breed if the visitor has just sent it."""
    with st.popover("It is a ...", icon=":material/edit:"):
        breeds = sorted(row.breed for row in answer.predictions if row != answer.best)
        breed = st.selectbox(
            "The photo shows",
            [*breeds, *_OTHER_CHOICES],
            index=None,
            format_func=lambda breed: _OTHER_CHOICES.get(breed, breed),
            key=f"breed {answer.token}",
        )
        return breed if st.button("Send", disabled=breed is None) else None
