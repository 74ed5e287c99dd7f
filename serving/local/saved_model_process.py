"""Predict with a SavedModel, in this process or as a program.

`python -m serving.local.saved_model_process MODEL_DIR < requests.jsonl > responses.jsonl` reads and writes the format
of TensorFlow Serving's REST Predict, one request and one response per line.
"""

import base64
import gc
import json
import sys
from typing import Any

import numpy as np

from serving import precision
from serving.model_files import DEFAULT_SIGNATURE, read_record, signature_to_request


class LoadedModel:
    """A SavedModel in this process.

    This process computes in the precision of the model record, as far as its CPU can.

    Args:
        model_dir: Directory of the SavedModel.
    """

    def __init__(self, model_dir: str):
        gc.disable()  # importing creates no garbage, but looking for it takes a quarter of the import time
        import tensorflow as tf

        gc.enable()
        self._tf = tf
        precision.use(precision.precision_of(read_record(model_dir)))
        self._model = tf.saved_model.load(model_dir)

    def predict(self, photos: list[bytes], signature_name: str | None = None) -> list[dict[str, Any]]:
        """Return the outputs for each photo by name, among them "probabilities" and "breeds".

        Args:
            photos: JPEG or PNG bytes.
            signature_name: Name of the signature; None selects the one with the most outputs.
        """
        signatures = self._model.signatures
        signature = signatures[signature_name or signature_to_request(signatures)]
        outputs = signature(image_bytes=self._tf.constant(photos))
        columns = {name: values.numpy() for name, values in outputs.items()}
        columns["breeds"] = np.char.decode(columns["breeds"].astype(bytes), "utf-8")
        return [{name: column[row].tolist() for name, column in columns.items()} for row in range(len(photos))]


def main() -> None:
    """Read {"signature_name": ..., "instances": [{"image_bytes": {"b64": ...}}]} and write {"predictions": [...]}."""
    model = LoadedModel(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        photos = [base64.b64decode(row["image_bytes"]["b64"]) for row in request["instances"]]
        predictions = model.predict(photos, request.get("signature_name", DEFAULT_SIGNATURE))
        print(json.dumps({"predictions": predictions}))


if __name__ == "__main__":
    main()
