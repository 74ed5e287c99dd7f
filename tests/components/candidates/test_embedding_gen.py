"""EmbeddingGen embeds each photo of train and eval exactly once."""

from collections import Counter

import apache_beam as beam
import tensorflow as tf
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, Schema
from tfx.utils import io_utils, path_utils

from components.candidates.embedding_features import feature_name
from components.candidates.embedding_gen import SPLITS, BackboneHandler, EmbeddingGen
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import write_json
from pipeline.settings import ROOT, load

BATCH = 4
PHOTOS = {"train": 11, "eval": 6}
SIZES = {feature_name("length", 0): 1, feature_name("length", 1): 2}


class LengthBackbone(tf.Module):
    """A backbone with two blocks: the number of bytes of the photo, and two and three times that number."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def embed(self, image_bytes):
        length = tf.cast(tf.strings.length(image_bytes), tf.float32)
        return {
            feature_name("length", 0): length[:, tf.newaxis],
            feature_name("length", 1): tf.stack([2 * length, 3 * length], axis=1),
        }


def write_examples(examples: Examples) -> None:
    examples.split_names = artifact_utils.encode_split_names(list(PHOTOS))
    for split, count in PHOTOS.items():
        folder = artifact_utils.get_split_uri([examples], split)
        tf.io.gfile.makedirs(folder)
        with tf.io.TFRecordWriter(f"{folder}/data.gz", "GZIP") as writer:
            for number in range(count):
                values = {"image_bytes": b"x" * (number + 1), "breed": b"Fogbell", "path": f"{split}{number}".encode()}
                values |= {"content_hash": values["path"], "near_duplicate_group": values["path"]}
                feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for k, v in values.items()}
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
        examples.set_int_custom_property(f"photos_{split}", count)


def test_each_photo_is_embedded_once_in_batches_of_limited_size(tmp_path, monkeypatch):
    examples, backbone, embeddings, schema = Examples(), Model(), Examples(), Schema()
    for name, artifact in {"e": examples, "b": backbone, "o": embeddings, "s": schema}.items():
        artifact.uri = str(tmp_path / name)
    write_examples(examples)
    module, path = LengthBackbone(), path_utils.serving_model_dir(backbone.uri)
    tf.saved_model.save(module, path, signatures={"serving_default": module.embed})
    write_json(path, BACKBONE_RECORD_FILE, {"embedding_sizes": SIZES, "precision": "float32"})
    embedded, batches = Counter(), []
    run_inference = BackboneHandler.run_inference

    def count_photos(self, batch, model, inference_args=None):
        batches.append(len(batch))
        for _, example in batch:
            embedded[tf.train.Example.FromString(example).features.feature["path"].bytes_list.value[0]] += 1
        return run_inference(self, batch, model, inference_args)

    monkeypatch.setattr(BackboneHandler, "run_inference", count_photos)
    EmbeddingGen.test_call(
        examples=examples,
        backbone=backbone,
        embeddings=embeddings,
        schema=schema,
        schema_template=(ROOT / "schemas" / "embeddings" / "schema.pbtxt").read_text(),
        batch=BATCH,
        code_digest="",
        beam_pipeline=beam.Pipeline(argv=load("demo").beam.pipeline_args()),
    )
    assert embedded == Counter(f"{split}{n}".encode() for split, count in PHOTOS.items() for n in range(count))
    assert max(batches) <= BATCH
    for split in SPLITS:
        folder = artifact_utils.get_split_uri([embeddings], split)
        records = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{folder}/*")).as_numpy_iterator()
        rows = [tf.train.Example.FromString(record).features.feature for record in records]
        assert len(rows) == PHOTOS[split]
        for row in rows:
            length = int(row["path"].bytes_list.value[0].decode().removeprefix(split)) + 1
            assert row["embedding_length_0"].float_list.value == [length]
            assert row["embedding_length_1"].float_list.value == [2 * length, 3 * length]
    features = io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema.uri)).feature
    sizes = {feature.name: feature.shape.dim[0].size for feature in features if feature.name.startswith("embedding")}
    assert sizes == SIZES
