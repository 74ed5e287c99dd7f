"""The Streamlit script of the page. Streamlit runs it from top to bottom on every visit and every interaction."""

import logging
import os
import uuid

import streamlit as st

from serving.client import ClientError
from serving.client.gateway import GatewayClient
from serving.page import feedback, photos, views
from serving.page.settings import Settings
from serving.photo_normalization import PhotoError

_LOG = logging.getLogger("serving.page")


def _client(settings: Settings) -> GatewayClient:
    """Return the client of this session. Its request key keeps the visitor on one version of the model."""
    if "client" not in st.session_state:
        st.session_state.client = GatewayClient(settings.gateway, settings.api_key, request_key=uuid.uuid4().hex)
    return st.session_state.client


def _show_prediction(client: GatewayClient, photo: photos.ChosenPhoto) -> None:
    # Streamlit runs the script again on every click; without this, each click would send the photo again.
    if st.session_state.get("answered") != photo:
        with st.spinner("Classifying the photo"):
            st.session_state.answer = client.predict(photo.content)
        st.session_state.answered = photo
    answer = st.session_state.answer
    views.show_prediction(photo, answer)
    if answer.token:
        feedback.ask_for_feedback(client, answer)


def _show_start(client: GatewayClient) -> None:
    model = client.ready()
    st.info("Choose a photo above. It should show one cat, large and in focus.", icon=":material/photo_camera:")
    st.caption(f"Model {model.name}, version {model.version}, is ready.")


def main() -> None:
    """Render the page."""
    settings = Settings.from_environment(os.environ)
    st.set_page_config(page_title="Which breed is this cat?", page_icon="🐈", layout="wide")
    if settings.review_captures:
        from serving.page import review  # imports SciPy, which the other page does not need

        review.main(settings)
        return
    st.title("Which breed is this cat?", anchor=False)
    photo = photos.choose_photo(photos.find_samples(settings.samples))
    client = _client(settings)
    try:
        if photo:
            _show_prediction(client, photo)
        else:
            _show_start(client)
    except PhotoError as error:
        views.show_photo_error(error)
    except ClientError as error:
        _LOG.warning("%s: %s", type(error).__name__, error)
        views.show_client_error(error)


main()
