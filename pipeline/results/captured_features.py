"""Features of captured photos, computed with the model that answered them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from components.photo_features import photo_features
from pipeline.results.reference_photos import reduced_size
from serving.captures import Capture
from serving.local.saved_model_process import LoadedModel
from serving.model_files import EXPLAIN_SIGNATURE

_BATCH_SIZE = 8  # photos in memory of a large network


def captured_features(
    model: Path, photos: Iterable[tuple[Capture, bytes]], max_side: int, progress: Callable[[int], None]
) -> list[tuple[Capture, dict[str, Any]]]:
    """Return the captures with their features.

    Args:
        model: Directory of the SavedModel, which has the signature `explain`.
        photos: Captures with the bytes of their photos.
        max_side: See `pipeline.results.reference_photos.Reference`.
        progress: Function that is called with the number of completed photos.
    """
    loaded, rows, batch = LoadedModel(str(model)), [], []
    for photo in photos:
        batch.append(photo)
        if len(batch) == _BATCH_SIZE:
            rows += _features(loaded, batch, max_side)
            batch = []
            progress(len(rows))
    return rows + (_features(loaded, batch, max_side) if batch else [])


def _features(
    model: LoadedModel, photos: list[tuple[Capture, bytes]], max_side: int
) -> list[tuple[Capture, dict[str, Any]]]:
    outputs = model.predict([content for _, content in photos], EXPLAIN_SIGNATURE)
    rows = []
    for (capture, content), output in zip(photos, outputs, strict=True):
        best = int(np.argmax(output["probabilities"]))
        row = {"predicted": output["breeds"][best], "confidence": output["probabilities"][best]}
        row |= photo_features(content, np.array(output["embedding"]), output["unfamiliarity"])
        row |= reduced_size(row["width"], row["height"], max_side)
        rows.append((capture, row | ({"unfamiliar": output["unfamiliar"]} if "unfamiliar" in output else {})))
    return rows
