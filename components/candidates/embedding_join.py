"""EmbeddingJoin component: joins the embeddings of several backbones, photo by photo, for the ensemble candidate."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import apache_beam as beam
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types import Channel, artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Schema
from tfx.utils import io_utils

from components.candidates.embedding_gen import SPLITS
from components.candidates.numbered_channels import declare_channels, number_channels, numbered_artifacts
from components.errors import DamagedFileError


class _Spec(ComponentSpec):
    PARAMETERS: ClassVar = {"code_digest": ExecutionParameter(type=str)}
    INPUTS: ClassVar = declare_channels({"embeddings": Examples, "schema": Schema})
    OUTPUTS: ClassVar = {"embeddings": ChannelParameter(type=Examples), "schema": ChannelParameter(type=Schema)}


class Executor(BaseBeamExecutor):
    """Executor that groups the examples of all backbones by content hash and merges their features."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        sources = numbered_artifacts(input_dict, "embeddings")
        joined = output_dict["embeddings"][0]
        joined.split_names = artifact_utils.encode_split_names(list(SPLITS))
        started = time.monotonic()
        with self._make_beam_pipeline() as pipeline:
            for split in SPLITS:
                _ = (
                    [
                        pipeline
                        | f"Read[{split}][{number}]"
                        >> beam.io.ReadFromTFRecord(
                            io_utils.all_files_pattern(artifact_utils.get_split_uri([source], split))
                        )
                        for number, source in enumerate(sources)
                    ]
                    | f"Flatten[{split}]" >> beam.Flatten()
                    | f"Key[{split}]" >> beam.Map(_with_content_hash)
                    | f"Group[{split}]" >> beam.GroupByKey()
                    | f"Merge[{split}]" >> beam.FlatMap(_merge, len(sources))
                    | f"Write[{split}]"
                    >> beam.io.WriteToTFRecord(
                        os.path.join(artifact_utils.get_split_uri([joined], split), "data_tfrecord")
                    )
                )
        joined.set_float_custom_property("seconds", time.monotonic() - started)
        joined.set_int_custom_property("photos", sources[0].get_int_custom_property("photos"))
        schemas = [
            io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema.uri))
            for schema in numbered_artifacts(input_dict, "schema")
        ]
        io_utils.write_pbtxt_file(os.path.join(output_dict["schema"][0].uri, "schema.pbtxt"), _merge_schemas(schemas))


class EmbeddingJoin(BaseBeamComponent):
    """Component that joins embeddings without another pass through a backbone.

    Args:
        backbones: Channels of each backbone: {embeddings, schema}.
        code_digest: Digest of the modules that the component runs.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = BeamExecutorSpec(Executor)

    def __init__(self, backbones: Iterable[Mapping[str, Channel]], code_digest: str):
        outputs = {"embeddings": Channel(type=Examples), "schema": Channel(type=Schema)}
        super().__init__(_Spec(code_digest=code_digest, **number_channels(backbones), **outputs))


def _with_content_hash(serialized: bytes) -> tuple[bytes, bytes]:
    example = tf.train.Example.FromString(serialized)
    return example.features.feature["content_hash"].bytes_list.value[0], serialized


def _merge(photo: tuple[bytes, Iterable[bytes]], backbones: int) -> Iterator[bytes]:
    """Yield one example with the features of all examples of a photo.

    Raises:
        DamagedFileError: If the photo has no example of one of the backbones.
    """
    content_hash, serialized = photo[0], list(photo[1])
    if len(serialized) != backbones:
        raise DamagedFileError(
            f"photo {content_hash.decode()} has embeddings of {len(serialized)} of {backbones} backbones; run again "
            "with an empty cache"
        )
    merged = tf.train.Example()
    for example in map(tf.train.Example.FromString, serialized):
        for name, feature in example.features.feature.items():
            merged.features.feature[name].CopyFrom(feature)
    yield merged.SerializeToString(deterministic=True)


def _merge_schemas(schemas: Iterable[schema_pb2.Schema]) -> schema_pb2.Schema:
    features = {feature.name: feature for schema in schemas for feature in schema.feature}
    return schema_pb2.Schema(feature=features.values())
