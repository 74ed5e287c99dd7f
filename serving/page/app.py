"""The page itself: Streamlit runs this file from top to bottom at each visit and each click."""

import logging
import os
import uuid

import streamlit as st

from serving.client import ClientError
from serving.client.gateway import GatewayClient
from serving.page import photos, views
from serving.page.settings import Settings
from serving.photo import PhotoError

_LOG = logging.getLogger("serving.page")


def _client(settings: Settings) -> GatewayClient:
    """One a visitor, whom the same version of the model answers as long as the page is open."""
    if "client" not in st.session_state:
        st.session_state.client = GatewayClient(settings.gateway, settings.api_key, request_key=uuid.uuid4().hex)
    return st.session_state.client


def _show_answer(client: GatewayClient, photo: photos.Chosen) -> None:
    with st.spinner("Looking at the photo"):
        answer = client.predict(photo.content)
    views.show_answer(photo, answer)


def _show_invitation(client: GatewayClient) -> None:
    model = client.ready()
    st.info("No photo yet. Choose one above: one cat, large and in focus.", icon=":material/photo_camera:")
    st.caption(f"Model {model.name}, version {model.version}, is ready.")


def main() -> None:
    """Draws the page."""
    settings = Settings.from_environment(os.environ)
    st.set_page_config(page_title="Which breed is this cat?", page_icon="🐈", layout="wide")
    st.title("Which breed is this cat?", anchor=False)
    photo = photos.choose(photos.find_samples(settings.samples))
    client = _client(settings)
    try:
        if photo:
            _show_answer(client, photo)
        else:
            _show_invitation(client)
    except PhotoError as error:
        views.show_refusal(error)
    except ClientError as error:
        _LOG.warning("%s: %s", type(error).__name__, error)
        views.show_trouble(error)


main()
