"""EmbeddingJoin merges the embeddings of all backbones for each photo."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Schema
from tfx.utils import io_utils

from components.candidates.embedding_gen import SPLITS
from components.candidates.embedding_join import Executor
from components.errors import DamagedFileError
from pipeline.settings import load

PHOTOS = {"train": 7, "eval": 3}


def write_embeddings(uri, backbone: str, value: float, photos: dict[str, int]) -> tuple[Examples, Schema]:
    """Write embeddings in an order and a number of files that depend on the backbone."""
    examples, schema = Examples(), Schema()
    examples.uri, schema.uri = str(uri / "examples"), str(uri / "schema")
    examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
    examples.set_int_custom_property("photos", sum(photos.values()))
    for split, count in photos.items():
        folder = artifact_utils.get_split_uri([examples], split)
        tf.io.gfile.makedirs(folder)
        order = np.random.default_rng(len(backbone)).permutation(count)
        for shard, numbers in enumerate(np.array_split(order, len(backbone))):
            with tf.io.TFRecordWriter(f"{folder}/{shard}.gz", "GZIP") as writer:
                for number in numbers:
                    example = tf.train.Example()
                    feature = example.features.feature
                    feature["content_hash"].bytes_list.value.append(f"{split}{number}".encode())
                    feature["breed"].bytes_list.value.append(b"Fogbell")
                    feature[f"embedding_{backbone}_0"].float_list.value.extend([value, number])
                    writer.write(example.SerializeToString())
    features = f'feature {{name: "breed"}} feature {{name: "embedding_{backbone}_0" shape {{dim {{size: 2}}}}}}'
    io_utils.write_pbtxt_file(f"{schema.uri}/schema.pbtxt", text_format.Parse(features, schema_pb2.Schema()))
    return examples, schema


def join(tmp_path, *sources: tuple[Examples, Schema]) -> tuple[Examples, Schema]:
    examples, schema = Examples(), Schema()
    examples.uri, schema.uri = str(tmp_path / "joined"), str(tmp_path / "joined_schema")
    inputs = {f"embeddings_{number}": [source[0]] for number, source in enumerate(sources)}
    inputs |= {f"schema_{number}": [source[1]] for number, source in enumerate(sources)}
    arguments = load("demo").beam.pipeline_args()
    executor = Executor(BaseBeamExecutor.Context(beam_pipeline_args=arguments))
    executor.Do(inputs, {"embeddings": [examples], "schema": [schema]}, {"code_digest": ""})
    return examples, schema


def test_each_photo_has_the_embeddings_of_all_backbones(tmp_path):
    sources = [
        write_embeddings(tmp_path / name, name, value, PHOTOS)
        for value, name in enumerate(["ab", "lite2", "c"], start=1)
    ]
    examples, schema = join(tmp_path, *sources)
    for split, count in PHOTOS.items():
        files = tf.io.gfile.glob(f"{artifact_utils.get_split_uri([examples], split)}/*")
        rows = [
            tf.train.Example.FromString(record).features.feature
            for record in tf.data.TFRecordDataset(files).as_numpy_iterator()
        ]
        assert len(rows) == count
        for row in rows:
            number = int(row["content_hash"].bytes_list.value[0].decode().removeprefix(split))
            assert row["breed"].bytes_list.value == [b"Fogbell"]
            for value, name in enumerate(["ab", "lite2", "c"], start=1):
                assert row[f"embedding_{name}_0"].float_list.value == [value, number]
    names = [f.name for f in io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema.uri)).feature]
    assert sorted(names) == ["breed", "embedding_ab_0", "embedding_c_0", "embedding_lite2_0"]
    assert examples.get_float_custom_property("seconds") > 0


def test_photo_without_an_embedding_is_an_error(tmp_path):
    sources = [
        write_embeddings(tmp_path / "a", "a", 1, PHOTOS),
        write_embeddings(tmp_path / "b", "b", 2, {"train": 6, "eval": 3}),
    ]
    with pytest.raises((DamagedFileError, RuntimeError), match="photo train6 has embeddings of 1 of 2 backbones"):
        join(tmp_path, *sources)
