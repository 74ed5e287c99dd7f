"""Input widgets for the photo: file upload, camera and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from PIL import Image, ImageOps

from serving.names import is_ignored
from serving.page.escaping import escape_markdown
from serving.photo_normalization import may_be_photo

_UPLOAD, _CAMERA, _SAMPLE = "Upload", "Camera", "Samples"
_THUMBNAIL = 104  # side in pixels; three fit into a row on a phone


class ChosenPhoto(NamedTuple):
    """The photo that the visitor chose.

    Attributes:
        name: Name to display.
        content: Content of the file.
    """

    name: str
    content: bytes


class Sample(NamedTuple):
    """A sample photo.

    Attributes:
        breed: Breed of the cat, from the name of the folder.
        path: Path of the file.
    """

    breed: str
    path: Path


def find_samples(folder: Path | None) -> list[Sample]:
    """Return the photos in `folder` and its subfolders, sorted by path; photos are detected by content."""
    paths = sorted(path for path in folder.rglob("*") if _is_sample(folder, path)) if folder else []
    return [Sample(path.stem if path.parent == folder else path.parent.name, path) for path in paths]


def _is_sample(folder: Path, path: Path) -> bool:
    if any(map(is_ignored, path.relative_to(folder).parts)) or not path.is_file():
        return False
    with path.open("rb") as file:
        return may_be_photo(file.read(16))


def choose_photo(samples: Sequence[Sample]) -> ChosenPhoto | None:
    """Render the input widgets, and return the chosen photo; None if no photo is chosen yet."""
    sources = [_UPLOAD, _CAMERA, *([_SAMPLE] if samples else [])]
    source = st.segmented_control("Photo source", sources, default=_UPLOAD, required=True, label_visibility="collapsed")
    if source == _SAMPLE:
        return _choose_sample(samples)
    # The uploader has no list of file extensions, because photos are detected by content.
    file = st.camera_input("Take a photo of the cat") if source == _CAMERA else st.file_uploader("Photo of a cat")
    return ChosenPhoto(file.name, file.getvalue()) if file else None


@st.cache_data
def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        # Twice the displayed size, for high-resolution screens.
        return ImageOps.fit(image.convert("RGB"), (2 * _THUMBNAIL, 2 * _THUMBNAIL))


def _choose_sample(samples: Sequence[Sample]) -> ChosenPhoto | None:
    with st.container(horizontal=True):
        for number, sample in enumerate(samples):
            with st.container(width=_THUMBNAIL, gap="xsmall"):
                try:
                    st.image(_thumbnail(sample.path), width=_THUMBNAIL)
                except OSError:
                    st.caption(f"{escape_markdown(sample.path.name)} cannot be displayed")
                    continue
                if st.button(escape_markdown(sample.breed), key=f"sample {number}", width="stretch"):
                    st.session_state["sample"] = number
    number = st.session_state.get("sample")
    if number is None:
        return None
    return ChosenPhoto(f"Sample: {samples[number].breed}", samples[number].path.read_bytes())
