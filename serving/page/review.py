"""The review page: captured photos with buttons to accept and reject them, for reviewers."""

from pathlib import Path

import streamlit as st

from serving import inbox
from serving.captures import CaptureStore, DamagedCapture, NoCapture
from serving.client.wording import UNFAMILIAR
from serving.inbox import InboxError, Item
from serving.page.escaping import escape_markdown
from serving.page.settings import Settings
from serving.photo_origins import OriginsError, read_origins

_SHOWN, _COLUMNS = 12, 3
_NEAR_DUPLICATE_BITS = 48  # default of the setting ingest.near_duplicate_bits


def main(settings: Settings) -> None:
    """Render the page.

    Args:
        settings: Settings with both folders for the review.
    """
    st.title("Review captured photos", anchor=False)
    st.caption("Accepted photos are copied to the photo folder, and the next training run learns from them.")
    store, data = CaptureStore(settings.review_captures), settings.review_photos
    reviewer = st.text_input("Your name", key="reviewer", help="Stored with each decision.").strip()
    if st.button("Reload", icon=":material/refresh:") or "inbox" not in st.session_state:
        with st.spinner("Reading captured photos"):
            pending = [capture for capture in store.read_all() if capture.review is None]
            st.session_state.inbox = inbox.read_inbox(pending, _accepted_photos(data), _NEAR_DUPLICATE_BITS)
    if st.session_state.pop("reviewed", False):
        st.warning("Another reviewer has already decided on that photo.", icon=":material/group:")
    items = st.session_state.inbox
    if not items:
        st.info("No photos to review.", icon=":material/inbox:")
        return
    st.markdown(f"{len(items)} photos, the most useful for review first.")
    columns = st.columns(_COLUMNS)
    for number, item in enumerate(list(items[:_SHOWN])):
        with columns[number % _COLUMNS], st.container(border=True):
            _show_item(store, data, item, reviewer)


def _show_item(store: CaptureStore, data: Path, item: Item, reviewer: str) -> None:
    capture, answer = item.capture, item.capture.answer
    try:
        st.image(capture.photo.read_bytes(), width="stretch")
    except FileNotFoundError:
        st.info("This photo expired or was deleted.", icon=":material/delete:")
        st.session_state.inbox.remove(item)
        return
    st.markdown(f"**{escape_markdown(answer.best.breed)}**, {answer.best.probability:.0%}")
    notes = [f"version {answer.model.version}, {capture.time[:10]}"]
    if len(answer.prediction_set or ()) > 1:
        notes.append(f"may show {', '.join(answer.prediction_set)}")
    if answer.unfamiliar:
        notes.append(UNFAMILIAR)
    if item.near_duplicate_of:
        notes.append(f"nearly the same as {item.near_duplicate_of}")
    if item.look_alikes:
        notes.append(f"look-alikes: {item.look_alikes}")
    st.caption(escape_markdown("; ".join(notes)))
    if capture.feedback:
        st.markdown(f"Feedback: **{escape_markdown(capture.feedback)}**")
    breeds = sorted(prediction.breed for prediction in answer.predictions)
    proposed = breeds.index(item.proposed_breed) if item.proposed_breed in breeds else None
    breed = st.selectbox("Breed", breeds, index=proposed, key=f"breed {capture.id}")
    with st.container(horizontal=True):
        is_accepted = st.button("Accept", key=f"accept {capture.id}", type="primary", disabled=not (reviewer and breed))
        is_rejected = st.button("Reject", key=f"reject {capture.id}", disabled=not reviewer)
    if not (is_accepted or is_rejected):
        return
    try:
        if store.read(capture.id).review:
            st.session_state.reviewed = True
        elif is_accepted:
            inbox.accept(store, item, breed, data, reviewer)
        else:
            inbox.reject(store, capture.id, data, reviewer)
    except (InboxError, OriginsError, DamagedCapture, OSError) as error:
        st.error(escape_markdown(str(error)))
        return
    except NoCapture:
        pass  # it expired or was deleted meanwhile, so there is nothing to review
    st.session_state.inbox.remove(item)
    st.rerun()


def _accepted_photos(data: Path) -> dict[str, bytes]:
    """Perceptual hashes of the accepted photos. Only the command `inbox` knows those of the last run."""
    return {f"capture {o.capture}": bytes.fromhex(o.perceptual_hash) for o in read_origins(data).values()}
