"""Photos out of the examples that ImageExampleGen wrote, and as pages hold them."""

import base64
import io
import os
from collections.abc import Collection

from PIL import Image, ImageOps

from components.local_copies import local_copy

_THUMBNAIL_SIDE = 160


def read_images(examples: str, split: str, wanted: Collection[str]) -> dict[str, bytes]:
    """JPEG or PNG bytes of photos in a split, by content hash, in the order of `wanted`.

    Args:
        examples: URI of the artifact.
        split: train, eval or test.
        wanted: content hashes; what the split does not have is left out.
    """
    import tensorflow as tf  # takes long, and thumbnails do without

    found = {}
    with local_copy(os.path.join(examples, f"Split-{split}")) as folder:
        files = sorted(tf.io.gfile.glob(os.path.join(folder, "*")))
        for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            content_hash = features["content_hash"].bytes_list.value[0].decode()
            if content_hash in wanted:
                found[content_hash] = features["image_bytes"].bytes_list.value[0]
            if len(found) == len(wanted):
                break
    return {content_hash: found[content_hash] for content_hash in wanted if content_hash in found}


def thumbnail(data: bytes) -> str:
    """A photo's file as a small JPEG, in a data URL."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
