"""Buttons for feedback on a photo that the gateway stores."""

import streamlit as st

from serving.captures import NOT_A_CAT, UNSURE
from serving.client import Answer, NoSuchCapture
from serving.client.gateway import GatewayClient
from serving.page.escaping import escape_markdown

_OTHER_CHOICES = {NOT_A_CAT: "Not a cat", UNSURE: "I am not sure"}
_DELETED = "deleted"


def ask_for_feedback(client: GatewayClient, answer: Answer) -> None:
    """Render the buttons, and send what the visitor chooses; a later choice replaces an earlier one.

    Args:
        client: Client of the gateway that answered.
        answer: Answer with a token.

    Raises:
        ClientError: If the gateway does not accept the feedback.
    """
    given = st.session_state.setdefault("feedback", {})
    if given.get(answer.token) == _DELETED:
        st.info("The photo is deleted.", icon=":material/delete:")
        return
    st.markdown("**Is the answer right?** This photo is stored to improve the model. Your answer helps.")
    choice = _choose(answer)
    try:
        if choice == _DELETED:
            client.delete_capture(answer.token)
        elif choice:
            client.give_feedback(answer.token, choice)
    except NoSuchCapture:
        given[answer.token] = choice = _DELETED
    if choice:
        given[answer.token] = choice
    if choice == _DELETED:
        st.rerun()
    if breed := given.get(answer.token):
        text = _OTHER_CHOICES.get(breed, breed)
        st.success(f"Thank you. Your answer: {escape_markdown(text)}.", icon=":material/check:")


def _choose(answer: Answer) -> str | None:
    """Render the buttons; return the breed, NOT_A_CAT, UNSURE or _DELETED if the visitor has just clicked."""
    with st.container(horizontal=True):
        is_right = st.button("Right", icon=":material/thumb_up:")
        with st.popover("It is a ...", icon=":material/edit:"):
            breeds = sorted(row.breed for row in answer.predictions if row != answer.best)
            choices = [*breeds, *_OTHER_CHOICES]
            other = st.selectbox(
                "The photo shows",
                choices,
                index=None,
                format_func=lambda breed: _OTHER_CHOICES.get(breed, breed),
                key=f"breed {answer.token}",
            )
            is_sent = st.button("Send", disabled=other is None)
        is_deleted = st.button("Delete this photo", type="tertiary", icon=":material/delete:")
    if is_right:
        return answer.best.breed
    if is_deleted:
        return _DELETED
    return other if is_sent else None
