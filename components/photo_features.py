"""Features of a photo and of the model's answer to it, for the comparison of captured photos with test photos."""

import io
from typing import Any

import numpy as np
from PIL import Image

# Longer side to which a JPEG is decoded to measure its brightness.
_BRIGHTNESS_SIDE = 128
# Keys of the rows in `serving.model_files.REFERENCE_PHOTOS_FILE`; rows of calibrated models also have `unfamiliar`.
FEATURES = ("predicted", "confidence", "width", "height", "brightness", "embedding_norm", "unfamiliarity")


def photo_features(photo: bytes, embedding: np.ndarray, unfamiliarity: float) -> dict[str, Any]:
    """Return the features of a photo.

    Args:
        photo: JPEG or PNG bytes of a normalized photo.
        embedding: Output `embedding` of the model's signature `explain`, float32 [d].
        unfamiliarity: Its output `unfamiliarity`.

    Returns:
        width, height: Size in pixels.
        brightness: Mean luma, 0 (black) to 1 (white).
        embedding_norm: Euclidean length of the embedding, divided by the square root of d; about 1 for train photos.
        unfamiliarity: Relative Mahalanobis distance to the train photos.
    """
    image = Image.open(io.BytesIO(photo))
    width, height = image.size
    image.draft("L", (_BRIGHTNESS_SIDE, _BRIGHTNESS_SIDE))  # a JPEG decoder averages blocks of pixels, which is fast
    return {
        "width": width,
        "height": height,
        "brightness": round(float(np.mean(image.convert("L"))) / 255, 4),
        "embedding_norm": round(float(np.sqrt(np.mean(np.square(embedding, dtype=np.float64)))), 4),
        "unfamiliarity": round(float(unfamiliarity), 4),
    }
