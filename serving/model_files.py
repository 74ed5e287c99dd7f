"""Names of the files and signatures of a pushed version, and the model record.

The files in `assets.extra` are part of the SavedModel. TensorFlow Serving reads only the warmup requests there.
"""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

# The signature that every version has, and the one with prediction sets and the flag for unfamiliar photos, which
# versions of earlier releases do not have.
DEFAULT_SIGNATURE = "serving_default"
EXPLAIN_SIGNATURE = "explain"
# The outputs that clients read. A signature may have others, and has no in_set and unfamiliar without calibration.
CLIENT_OUTPUTS = ("probabilities", "breeds", "in_set", "unfamiliar")

# Model record: backbones, breeds, hyperparameters and digests.
MODEL_RECORD_FILE = "assets.extra/catbreeds.json"
# Content hashes of the photos in the splits train and eval, one per line.
LEARNED_PHOTOS_FILE = "assets.extra/learned_photos.txt"
# Statistics of the photos in the split train, a DatasetFeatureStatisticsList.
TRAIN_STATISTICS_FILE = "assets.extra/train_statistics.pb"
# Content hashes and features of the test photos, one JSON object per line; see `components.photo_features`.
REFERENCE_PHOTOS_FILE = "assets.extra/reference_photos.jsonl"
# Photos with their expected predictions.
GOLDEN_REQUESTS_FILE = "assets.extra/golden.json"
# TensorFlow Serving requires this name.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
# Admission record: when, by which run and why the version passed the gate.
ADMISSION_FILE = "admission.json"
CARD_FILE = "model_card.json"
CARD_PAGE = "model_card.html"


# Current keys by the keys that earlier versions of this project wrote.
_RENAMED_KEYS = {"recipe_digest": "model_digest", "origin_digest": "inputs_digest"}


def with_current_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with keys from earlier versions of this project renamed to the current ones."""
    return {_RENAMED_KEYS.get(key, key): value for key, value in document.items()}


def signature_to_request(signatures: Container[str]) -> str:
    """Return the signature with the most outputs among `signatures` of a version."""
    return EXPLAIN_SIGNATURE if EXPLAIN_SIGNATURE in signatures else DEFAULT_SIGNATURE


def read_record(model: str | Path) -> dict[str, Any]:
    """Read the model record of the SavedModel in the directory `model`.

    Raises:
        FileNotFoundError: If the directory does not exist or has no model record.
    """
    return with_current_keys(json.loads((Path(model) / MODEL_RECORD_FILE).read_text(encoding="utf-8")))
