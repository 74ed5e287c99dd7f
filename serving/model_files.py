"""Files of a pushed version: their names, and the record that says what the model is made of.

Those in `assets.extra` are part of the SavedModel. TensorFlow Serving reads only the warmup requests there.
"""

import json
from pathlib import Path
from typing import Any

# What the model is made of: backbones, breeds, hyperparameters, digests.
MODEL_RECORD_FILE = "assets.extra/catbreeds.json"
# Content hashes of the photos of train and eval, a line each.
LEARNED_PHOTOS_FILE = "assets.extra/learned_photos.txt"
# Statistics of the photos of train, a DatasetFeatureStatisticsList.
TRAIN_STATISTICS_FILE = "assets.extra/train_statistics.pb"
# Photos with the answers that are right.
GOLDEN_REQUESTS_FILE = "assets.extra/golden.json"
# The name is TensorFlow Serving's.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
# When, by which run and why the version was admitted.
ADMISSION_FILE = "admission.json"
CARD_FILE = "model_card.json"
CARD_PAGE = "model_card.html"


# Keys that earlier versions of this project wrote, and what they are called now.
_RENAMED_KEYS = {"recipe_digest": "model_digest", "origin_digest": "inputs_digest"}


def with_current_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with keys that earlier versions of this project wrote under their current names."""
    return {_RENAMED_KEYS.get(key, key): value for key, value in document.items()}


def read_record(model: str | Path) -> dict[str, Any]:
    """Backbone, breeds, hyperparameters and digests of the SavedModel in the directory `model`.

    Raises:
        FileNotFoundError: there is no such model, or it is not one of ours.
    """
    return with_current_keys(json.loads((Path(model) / MODEL_RECORD_FILE).read_text(encoding="utf-8")))
