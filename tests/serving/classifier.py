"""A small SavedModel with the signatures of pushed models, and photos of its classes."""

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

BREEDS = ["Norwegian Forest", "Münsterkatze", "Rex", "Van, Turkish"]
SET_THRESHOLD = 0.16
MAX_FAMILIAR_BRIGHTNESS = 230.0


class Classifier(tf.Module):
    """A classifier with the signatures `serving_default` and `explain`.

    The probabilities depend on the brightness of the image's quarters: rotation and mirroring change them, resizing
    does not. Photos that are almost white are unfamiliar.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes):
        """image_bytes string [n] -> probabilities float32 [n, 4] and breeds string [n, 4]."""
        return self._outputs(self._brightness(image_bytes))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def explain(self, image_bytes):
        """image_bytes string [n] -> also in_set bool [n, 4], unfamiliar bool [n] and unfamiliarity float32 [n]."""
        outputs = self.explain_without_calibration(image_bytes)
        best = tf.reduce_max(outputs["probabilities"], axis=1, keepdims=True)
        return outputs | {
            "in_set": outputs["probabilities"] >= tf.minimum(best, SET_THRESHOLD),
            "unfamiliar": outputs["unfamiliarity"] > MAX_FAMILIAR_BRIGHTNESS,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def explain_without_calibration(self, image_bytes):
        """image_bytes string [n] -> also unfamiliarity float32 [n]."""
        brightness = self._brightness(image_bytes)
        return self._outputs(brightness) | {"unfamiliarity": tf.reduce_mean(brightness, axis=1)}

    def _brightness(self, image_bytes):
        def quarters(photo):
            image = tf.io.decode_image(photo, channels=1, expand_animations=False)
            return tf.reshape(tf.image.resize(image, [2, 2], antialias=True), [4])

        return tf.map_fn(quarters, image_bytes, fn_output_signature=tf.float32)

    def _outputs(self, brightness):
        probabilities = tf.nn.softmax(brightness / 64)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(BREEDS, tf.shape(probabilities))}

    def save(self, path: Path, explain: bool = True, calibrated: bool = True) -> None:
        """Write the SavedModel; without `explain` it has the signatures of versions of earlier releases."""
        signatures = {"serving_default": self.classify}
        if explain:
            signatures["explain"] = self.explain if calibrated else self.explain_without_calibration
        tf.saved_model.save(self, str(path), signatures=signatures)


def picture(brightest: int = 0, width: int = 96, height: int = 64) -> Image.Image:
    """Return a smooth image with a bright quarter; BREEDS[brightest] is its breed."""
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(x / width - (brightest % 2), y / height - (brightest // 2))
    gray = np.clip(240 - 180 * distance, 0, 255)
    return Image.fromarray(np.stack([gray, gray * 0.9, gray * 0.8], axis=-1).astype(np.uint8))


def plain(color: str) -> Image.Image:
    """Return an image of one color; all breeds are equally probable. "white" is unfamiliar."""
    return Image.new("RGB", (64, 64), color)


def one_white_quarter() -> Image.Image:
    """Return an image whose prediction set has only BREEDS[0]."""
    image = plain("black")
    image.paste("white", (0, 0, 32, 32))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
