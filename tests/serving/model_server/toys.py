"""Small SavedModels whose outputs identify the version."""

import shutil
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


class Adder(tf.Module):
    """x float32 [n] -> y = x + version, and the version, both float32 [n]."""

    def __init__(self, version: int):
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def add(self, x):
        return {"y": x + self.version, "version": tf.fill(tf.shape(x), self.version)}

    def save(self, path: Path) -> None:
        tf.saved_model.save(self, str(path), signatures=self.add)


class Toys(Adder):
    """Adder with more signatures: several inputs, bytes, text, and one that blocks."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, "points"), tf.TensorSpec([None], tf.int64, "weights")]
    )
    def weigh(self, points, weights):
        return {"weighed": points * tf.cast(weights, tf.float32)[:, tf.newaxis]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def measure(self, image_bytes):
        def height(photo):
            return tf.shape(tf.io.decode_image(photo, channels=3, expand_animations=False))[0]

        heights = tf.map_fn(height, image_bytes, fn_output_signature=tf.int32)
        return {"height": heights, "rows": tf.fill(tf.shape(heights), tf.size(heights))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def spell(self, text):
        return {"text": text, "copy_bytes": text}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, "file")])
    def wait(self, file):
        """Run until the file exists, to keep a request in flight."""

        def file_count(step, _):
            # The file name depends on the step; otherwise TensorFlow could evaluate it only once.
            return step + 1, tf.size(tf.io.matching_files(tf.where(step >= 0, file, "")))

        _, found = tf.while_loop(lambda _, found: tf.equal(found, 0), file_count, [tf.constant(0), tf.constant(0)])
        return {"found": tf.cast(found, tf.float32) * self.version}

    def save(self, path: Path) -> None:
        signatures = {
            "serving_default": self.add,
            "weigh": self.weigh,
            "measure": self.measure,
            "spell": self.spell,
            "wait": self.wait,
        }
        tf.saved_model.save(self, str(path), signatures=signatures)


def jpeg(height: int) -> bytes:
    return tf.io.encode_jpeg(tf.zeros([height, 8, 3], tf.uint8)).numpy()


def push(model: Path, base: Path, version: int) -> None:
    """Add a version atomically, as `serving.registry` does."""
    base.mkdir(exist_ok=True)
    staged = base / f".{version}.staged"
    shutil.copytree(model, staged)
    staged.rename(base / str(version))


def add_warmup(model: Path, *values: object) -> None:
    """Write a warmup request for each of `values`, for the input x."""
    (model / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(model / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for value in values:
            request = predict_pb2.PredictRequest()
            request.inputs["x"].CopyFrom(tf.make_tensor_proto([value]))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
