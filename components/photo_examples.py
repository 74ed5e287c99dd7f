"""Photos from the examples of ImageExampleGen, and thumbnails for pages."""

import base64
import io
import os
from collections.abc import Collection

from PIL import Image, ImageOps

from components.local_copies import local_copy

_THUMBNAIL_SIDE = 160


def read_images(examples: str, split: str, content_hashes: Collection[str]) -> dict[str, bytes]:
    """Read the JPEG or PNG bytes of photos in a split, by content hash, in the order of `content_hashes`.

    Args:
        examples: URI of the examples artifact.
        split: Name of the split: train, eval or test.
        content_hashes: Content hashes of the photos; hashes that are not in the split are ignored.
    """
    import tensorflow as tf  # the import is slow, and thumbnails do not need it

    images = {}
    with local_copy(os.path.join(examples, f"Split-{split}")) as folder:
        files = sorted(tf.io.gfile.glob(os.path.join(folder, "*")))
        for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            content_hash = features["content_hash"].bytes_list.value[0].decode()
            if content_hash in content_hashes:
                images[content_hash] = features["image_bytes"].bytes_list.value[0]
            if len(images) == len(content_hashes):
                break
    return {content_hash: images[content_hash] for content_hash in content_hashes if content_hash in images}


def thumbnail_data_url(data: bytes) -> str:
    """Data URL of a small JPEG of the photo in `data`."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
