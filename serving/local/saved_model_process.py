"""Loads a SavedModel in this process and answers, as a model server would.

`python -m serving.local.saved_model_process MODEL_DIR < request.json > answer.json`, both in the format of TensorFlow
Serving's REST predict.
"""

import base64
import gc
import json
import sys


def answer(model: str, photos: list[bytes]) -> list[dict[str, list]]:
    """For each photo {"probabilities": [...], "breeds": [...]}, in the same order.

    Args:
        model: directory of the SavedModel.
        photos: JPEG or PNG bytes.
    """
    gc.disable()  # imports create no garbage; gain: "import TensorFlow" of benchmarks/optimizations.py
    import tensorflow as tf

    gc.enable()
    signature = tf.saved_model.load(model).signatures["serving_default"]
    outputs = signature(image_bytes=tf.constant(photos))
    return [
        {"probabilities": probabilities.tolist(), "breeds": [name.decode() for name in breeds]}
        for probabilities, breeds in zip(outputs["probabilities"].numpy(), outputs["breeds"].numpy(), strict=True)
    ]


def main() -> None:
    """Reads {"instances": [{"image_bytes": {"b64": ...}}]}, writes {"predictions": [{output: values}]}."""
    photos = [base64.b64decode(row["image_bytes"]["b64"]) for row in json.load(sys.stdin)["instances"]]
    json.dump({"predictions": answer(sys.argv[1], photos)}, sys.stdout)


if __name__ == "__main__":
    main()
