"""Where a visitor's photo comes from: a file, the camera, or the samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from PIL import Image, ImageOps

from serving.names import is_ignored
from serving.page.escaping import escape_markdown
from serving.photo import may_be_photo

_UPLOAD, _CAMERA, _SAMPLE = "Upload", "Camera", "Samples"
_THUMBNAIL = 104  # side in pixels; three fit into a row of a phone


class Chosen(NamedTuple):
    """What a visitor wants to know the breed of.

    Attributes:
        name: for people.
        content: of the file.
    """

    name: str
    content: bytes


class Sample(NamedTuple):
    """A photo to try.

    Attributes:
        breed: what it shows, says its folder.
        path: of the file.
    """

    breed: str
    path: Path


def find_samples(folder: Path | None) -> list[Sample]:
    """The photos below `folder`, known by their content, in the order of their names; none if it is None."""
    paths = sorted(path for path in folder.rglob("*") if _is_sample(folder, path)) if folder else []
    return [Sample(path.stem if path.parent == folder else path.parent.name, path) for path in paths]


def _is_sample(folder: Path, path: Path) -> bool:
    if any(map(is_ignored, path.relative_to(folder).parts)) or not path.is_file():
        return False
    with path.open("rb") as file:
        return may_be_photo(file.read(16))


def choose(samples: Sequence[Sample]) -> Chosen | None:
    """Shows the ways to a photo; returns it when there is one."""
    ways = [_UPLOAD, _CAMERA, *([_SAMPLE] if samples else [])]
    way = st.segmented_control(
        "Where is the photo?", ways, default=_UPLOAD, required=True, label_visibility="collapsed"
    )
    if way == _SAMPLE:
        return _choose_sample(samples)
    # No list of file names: photos are known by their content, and have many names.
    file = st.camera_input("Take a photo of the cat") if way == _CAMERA else st.file_uploader("Photo of a cat")
    return Chosen(file.name, file.getvalue()) if file else None


@st.cache_data
def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        # Twice the size, for fine screens.
        return ImageOps.fit(image.convert("RGB"), (2 * _THUMBNAIL, 2 * _THUMBNAIL))


def _choose_sample(samples: Sequence[Sample]) -> Chosen | None:
    with st.container(horizontal=True):
        for number, sample in enumerate(samples):
            with st.container(width=_THUMBNAIL, gap="xsmall"):
                try:
                    st.image(_thumbnail(sample.path), width=_THUMBNAIL)
                except OSError:
                    st.caption(f"{escape_markdown(sample.path.name)} cannot be shown")
                    continue
                if st.button(escape_markdown(sample.breed), key=f"sample {number}", width="stretch"):
                    st.session_state["sample"] = number
    number = st.session_state.get("sample")
    if number is None:
        return None
    return Chosen(f"a sample, {samples[number].breed}", samples[number].path.read_bytes())
