"""EmbeddingGen component: embeds each photo once with a frozen backbone; heads are trained on the embeddings."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.ml.inference.base import ModelHandler, RunInference
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.component.experimental.annotations import BeamComponentParameter, InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, Schema
from tfx.utils import io_utils, path_utils

from components import progress
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import read_json
from serving import precision

SPLITS = ("train", "eval")
# While the network computes one part of a batch, the other part is decoded. Gain: "batch in two parts" of
# benchmarks/optimizations.py.
_PARTS = 2
_COPIED_FEATURES = ("breed", "path", "content_hash", "near_duplicate_group")


class BackboneHandler(ModelHandler[tuple[str, bytes], tuple[str, bytes], tf.types.experimental.ConcreteFunction]):
    """Model handler that runs the SavedModel of a backbone on pairs of a split and a serialized tf.Example.

    Each worker process loads the model once, and computes in the precision of the backbone's record.

    Args:
        path: Directory of the SavedModel.
        batch: Maximum number of images in one forward pass, which limits memory.
        total: Number of images, for the progress bar.
    """

    def __init__(self, path: str, batch: int, total: int | None = None):
        super().__init__()
        self._path, self._batch, self._total = path, batch, total

    def load_model(self):
        """Load the SavedModel and return its embedding signature.

        Raises:
            PrecisionError: If the CPU of this worker cannot compute in the precision of the backbone.
        """
        recorded = read_json(self._path, BACKBONE_RECORD_FILE)["precision"]
        precision.require(recorded)
        precision.use(recorded)
        self._counter = progress.Counter("photos", self._total)
        self._threads = ThreadPoolExecutor(_PARTS)
        self._model = tf.saved_model.load(self._path)  # a signature does not keep its model alive
        return self._model.signatures["serving_default"]

    def batch_elements_kwargs(self):
        """Minimum and maximum batch size for Beam.

        They are equal, because TensorFlow prepares its kernels again for each new shape, and because sizes that Beam
        derives from durations differ between runs.
        """
        return {"min_batch_size": self._batch, "max_batch_size": self._batch}

    def run_inference(
        self, batch: Sequence[tuple[str, bytes]], model, inference_args=None
    ) -> Iterator[tuple[str, bytes]]:
        """Embed the images of `batch`, in order."""
        photos = [tf.train.Example.FromString(example).features.feature for _, example in batch]
        images = [photo["image_bytes"].bytes_list.value[0] for photo in photos]
        size = -(-len(images) // _PARTS)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        outputs = list(self._threads.map(lambda part: _embed(part, model), parts))
        embeddings = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        self._counter.add(len(batch))
        for row, ((split, _), photo) in enumerate(zip(batch, photos, strict=True)):
            feature = {name: photo[name] for name in _COPIED_FEATURES}
            for name, values in embeddings.items():
                # A list of Python floats is converted five times as fast as an array.
                feature[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values[row].tolist()))
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            yield split, example.SerializeToString(deterministic=True)


def _embed(images: list[bytes], model) -> dict[str, np.ndarray]:
    """Return the outputs of the backbone for JPEG or PNG bytes, float32 [number of images, d] each."""
    # In bfloat16, the embedding of a photo is the same in all batches except in one of a single photo.
    padded = tf.constant(2 * images if len(images) == 1 else images)
    return {name: values.numpy()[: len(images)] for name, values in model(image_bytes=padded).items()}


@component(use_beam=True)
def EmbeddingGen(
    examples: InputArtifact[Examples],
    backbone: InputArtifact[Model],
    embeddings: OutputArtifact[Examples],
    schema: OutputArtifact[Schema],
    schema_template: Parameter[str],
    batch: Parameter[int],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Embed the photos of train and eval. The gate evaluates the photos of test from their bytes.

    Features of the examples: breed, path, content_hash, near_duplicate_group and the outputs of the backbone, each
    float32 [d].

    Args:
        examples: Photos of ImageExampleGen.
        backbone: Backbone with the signature `serving_default`.
        embeddings: Embeddings, with the splits train and eval.
        schema: Schema of the embeddings.
        schema_template: Schema of the embeddings in text format; its feature `embedding` describes each embedding.
        batch: Maximum number of images in one forward pass.
        code_digest: Digest of the modules that the component runs.
        beam_pipeline: Beam pipeline that runs the embedding.
    """
    path = path_utils.serving_model_path(backbone.uri)
    total = sum(examples.get_int_custom_property(f"photos_{split}") for split in SPLITS)
    embeddings.split_names = artifact_utils.encode_split_names(list(SPLITS))
    started = time.monotonic()
    with beam_pipeline as pipeline:
        embedded = (
            pipeline
            # One transform reads both splits: Beam's direct runner would keep the inputs of a Flatten in memory.
            | "Files" >> beam.Create([_files(examples, split) for split in SPLITS])
            | "Read" >> beam.io.ReadAllFromTFRecord(with_filename=True)
            | "Tag" >> beam.MapTuple(lambda path, example: (_split(path), example))
            | "Embed" >> RunInference(BackboneHandler(path, batch, total))
            | "Split" >> beam.Partition(lambda row, _: SPLITS.index(row[0]), len(SPLITS))
        )
        for split, rows in zip(SPLITS, embedded, strict=True):
            _ = (
                rows
                | f"Drop[{split}]" >> beam.Values()
                # Not compressed: gzip would save 8 percent of the size.
                | f"Write[{split}]"
                >> beam.io.WriteToTFRecord(
                    os.path.join(artifact_utils.get_split_uri([embeddings], split), "data_tfrecord")
                )
            )
    embeddings.set_float_custom_property("seconds", time.monotonic() - started)
    embeddings.set_int_custom_property("photos", total)
    _write_schema(schema.uri, schema_template, read_json(path, BACKBONE_RECORD_FILE)["embedding_sizes"])


def _files(examples: Examples, split: str) -> str:
    return io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))


def _split(path: str) -> str:
    """Name of the split of a file in an examples artifact."""
    return os.path.basename(os.path.dirname(path)).removeprefix("Split-")


def _write_schema(uri: str, template: str, embedding_sizes: dict[str, int]) -> None:
    schema = text_format.Parse(template, schema_pb2.Schema())
    embedding = next(feature for feature in schema.feature if feature.name == "embedding")
    schema.feature.remove(embedding)
    for name, size in embedding_sizes.items():
        feature = schema.feature.add()
        feature.CopyFrom(embedding)
        feature.name = name
        feature.shape.dim.add(size=size)
    io_utils.write_pbtxt_file(os.path.join(uri, "schema.pbtxt"), schema)
