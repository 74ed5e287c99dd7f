"""EmbeddingGen embeds each photo of train and eval exactly once."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.types import Artifact, artifact_utils
from tfx.types.standard_artifacts import Examples, Model, Schema
from tfx.utils import io_utils, path_utils

import serving.precision
from components.candidates.embedding_features import feature_name
from components.candidates.embedding_gen import SPLITS, BackboneHandler, EmbeddingGen
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import write_json
from pipeline.settings import ROOT, load
from tests.amx import SUM, in_new_process, needs_amx, rounded_sums

BATCH = 16
PHOTOS = {"train": 27, "eval": 6}
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


class RoundingBackbone(tf.Module):
    """A backbone whose embedding depends on the precision."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def embed(self, image_bytes):
        return {
            feature_name("length", 0): rounded_sums(tf.size(image_bytes))[:, tf.newaxis],
            feature_name("length", 1): tf.zeros([tf.size(image_bytes), 2]),
        }


def write_backbone(path: str, module: tf.Module, precision: str) -> None:
    tf.saved_model.save(module, path, signatures={"serving_default": module.embed})
    write_json(path, BACKBONE_RECORD_FILE, {"embedding_sizes": SIZES, "precision": precision})


def run_component(folder: Path, module: tf.Module, precision: str = "float32") -> dict[str, Artifact]:
    """Run EmbeddingGen with a backbone; return its artifacts by name."""
    artifacts = {"examples": Examples(), "backbone": Model(), "embeddings": Examples(), "schema": Schema()}
    for name, artifact in artifacts.items():
        artifact.uri = str(folder / name)
    write_examples(artifacts["examples"])
    write_backbone(path_utils.serving_model_dir(artifacts["backbone"].uri), module, precision)
    EmbeddingGen.test_call(
        **artifacts,
        schema_template=(ROOT / "schemas" / "embeddings" / "schema.pbtxt").read_text(),
        batch=BATCH,
        code_digest="",
        beam_pipeline=beam.Pipeline(argv=load("demo").beam.pipeline_args()),
    )
    return artifacts


def read_rows(embeddings: Examples, split: str) -> list[Mapping[str, tf.train.Feature]]:
    records = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{artifact_utils.get_split_uri([embeddings], split)}/*"))
    return [tf.train.Example.FromString(record).features.feature for record in records.as_numpy_iterator()]


def test_each_photo_is_embedded_once_in_batches_of_fixed_size(tmp_path, monkeypatch):
    embedded, batches = Counter(), []
    run_inference = BackboneHandler.run_inference

    def count_photos(self, batch, model, inference_args=None):
        batches.append(len(batch))
        for _, example in batch:
            embedded[tf.train.Example.FromString(example).features.feature["path"].bytes_list.value[0]] += 1
        return run_inference(self, batch, model, inference_args)

    monkeypatch.setattr(BackboneHandler, "run_inference", count_photos)
    artifacts = run_component(tmp_path, LengthBackbone())
    assert embedded == Counter(f"{split}{n}".encode() for split, count in PHOTOS.items() for n in range(count))
    assert batches == [BATCH, BATCH, 1]
    for split in SPLITS:
        rows = read_rows(artifacts["embeddings"], split)
        assert len(rows) == PHOTOS[split]
        for row in rows:
            length = int(row["path"].bytes_list.value[0].decode().removeprefix(split)) + 1
            assert row["embedding_length_0"].float_list.value == [length]
            assert row["embedding_length_1"].float_list.value == [2 * length, 3 * length]
    features = io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(artifacts["schema"].uri)).feature
    sizes = {feature.name: feature.shape.dim[0].size for feature in features if feature.name.startswith("embedding")}
    assert sizes == SIZES


def test_a_single_photo_is_computed_in_a_batch_of_two(tmp_path):
    write_backbone(str(tmp_path), LengthBackbone(), "float32")
    handler = BackboneHandler(str(tmp_path), BATCH)
    embed, sizes = handler.load_model(), []

    def count_photos(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        sizes.append(len(image_bytes))
        return embed(image_bytes=image_bytes)

    photo = tf.train.Example()
    photo.features.feature["image_bytes"].bytes_list.value.append(b"xxx")
    ((split, row),) = handler.run_inference([("train", photo.SerializeToString())], count_photos)
    assert (split, sizes) == ("train", [2])
    assert tf.train.Example.FromString(row).features.feature["embedding_length_0"].float_list.value == [3]


def embed_in_bfloat16(folder: Path) -> list[float]:
    """Run EmbeddingGen with RoundingBackbone; return the embeddings."""
    artifacts = run_component(folder, RoundingBackbone(), "bfloat16")
    rows = [row for split in SPLITS for row in read_rows(artifacts["embeddings"], split)]
    return [row["embedding_length_0"].float_list.value[0] for row in rows]


@needs_amx
def test_photos_are_embedded_in_the_precision_of_the_backbone(tmp_path):
    assert in_new_process(embed_in_bfloat16, tmp_path) == [SUM["bfloat16"]] * sum(PHOTOS.values())


def test_bfloat16_fails_on_a_worker_without_amx(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    with pytest.raises(serving.precision.PrecisionError, match="precision: bfloat16 needs a CPU with AMX"):
        run_component(tmp_path, RoundingBackbone(), "bfloat16")
