"""Features of the test photos of a pushed version, with which captured photos are compared."""

import json
from typing import Any, NamedTuple

from PIL import Image

from components.json_files import read_json_lines
from components.photo_features import FEATURES
from serving.model_files import REFERENCE_PHOTOS_FILE
from serving.photo_normalization import MAX_SIDE
from serving.registry import Registry, RegistryError


class Reference(NamedTuple):
    """Test photos of a version.

    Attributes:
        rows: Features of each photo; see `components.photo_features`.
        max_side: Longest side of a photo, in pixels, that neither ingestion nor the gateway reduced.
    """

    rows: list[dict[str, Any]]
    max_side: int


def read_reference(registry: Registry, version: int) -> Reference:
    """Read the features of the test photos of a version.

    Raises:
        RegistryError: If there is no such version, or it has no features.
        DamagedFileError: If the file is damaged.
    """
    max_side = min(MAX_SIDE, json.loads(registry.admission(version)["settings"])["ingest"]["max_side"])
    path = registry.path(version)
    try:
        rows = read_json_lines(str(path), REFERENCE_PHOTOS_FILE)
    except FileNotFoundError:
        raise RegistryError(
            f"{path / REFERENCE_PHOTOS_FILE}: no such file: an earlier release pushed version {version}, without the "
            "features of its test photos; train and push a version with `catbreeds run`"
        ) from None
    if not rows or not all(row.keys() >= set(FEATURES) for row in rows):
        raise RegistryError(f"{path / REFERENCE_PHOTOS_FILE}: damaged: a photo has no {', '.join(FEATURES)}")
    return Reference([row | reduced_size(row["width"], row["height"], max_side) for row in rows], max_side)


def reduced_size(width: int, height: int, max_side: int) -> dict[str, int]:
    """Return the size of a photo after its longer side is reduced to `max_side`, as `photo_normalization` does."""
    image = Image.new("L", (width, height))
    image.thumbnail((max_side, max_side), Image.Resampling.NEAREST)
    return {"width": image.width, "height": image.height}
