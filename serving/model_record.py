"""What a served model is made of; the record travels inside the SavedModel."""

import json
from pathlib import Path
from typing import Any

# TF Serving leaves assets.extra alone.
RECORD_FILE = "assets.extra/catbreeds.json"
# Content hashes of the photos of train and eval, a line each.
LEARNED_FILE = "assets.extra/learned_photos.txt"


def read_record(model: str | Path) -> dict[str, Any]:
    """Backbone, breeds, hyperparameters and digests of the SavedModel in the directory `model`.

    Raises:
        FileNotFoundError: there is no such model, or it is not one of ours.
    """
    return json.loads((Path(model) / RECORD_FILE).read_text(encoding="utf-8"))
