"""The Evaluator computes a model in batches of a fixed size, in the precision of its record or in float32."""

from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.types import Artifact, artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, Schema
from tfx.utils import path_utils

import serving.precision
from components.artifacts import ClassificationMetrics, Metrics
from components.candidates.evaluator import Evaluator
from components.evaluation_result import read_outcomes
from components.json_files import write_json
from pipeline.settings import load
from serving.model_files import DEFAULT_SIGNATURE, MODEL_RECORD_FILE
from tests.amx import RoundingModel, in_new_process, needs_amx

PHOTOS = 5
BATCH = 2


class BatchSizeModel(RoundingModel):
    """A model that predicts for each photo the size of its batch, at most 3."""

    BREEDS = ("1", "2", "3")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes):
        """image_bytes string [n] -> probabilities float32 [n, 3] and breeds string [n, 3]."""
        size = tf.minimum(tf.size(image_bytes), len(self.BREEDS))
        probabilities = tf.one_hot(tf.fill([tf.size(image_bytes)], size - 1), len(self.BREEDS))
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(self.BREEDS, tf.shape(probabilities))}


def write_artifacts(folder: Path, model: RoundingModel, precision: str) -> dict[str, Artifact]:
    """Write a model and some photos; return the artifacts of the Evaluator by name."""
    artifacts = {
        "examples": Examples(),
        "schema": Schema(),
        "model": Model(),
        "evaluation": ModelEvaluation(),
        "metrics": Metrics(),
        "confusion": ClassificationMetrics(),
    }
    for name, artifact in artifacts.items():
        artifact.uri = str(folder / name)
    artifacts["examples"].split_names = artifact_utils.encode_split_names(["test"])
    split = Path(artifact_utils.get_split_uri([artifacts["examples"]], "test"))
    split.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(split / "data.gz"), "GZIP") as writer:
        for number in range(PHOTOS):
            values = {
                "image_bytes": b"photo",
                "breed": b"bfloat16",
                "path": b"a.jpg",
                "content_hash": str(number).encode(),
            }
            values |= {"near_duplicate_group": values["content_hash"]}
            feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for k, v in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    (folder / "schema").mkdir()
    schema = "".join(
        f'feature {{ name: "{name}" type: BYTES presence {{ min_fraction: 1 }} shape {{ dim {{ size: 1 }} }} }}\n'
        for name in ("image_bytes", "breed", "path", "content_hash", "near_duplicate_group")
    )
    (folder / "schema" / "schema.pbtxt").write_text(schema)
    path = path_utils.serving_model_dir(artifacts["model"].uri)
    model.save(path)
    write_json(path, MODEL_RECORD_FILE, {"breeds": model.BREEDS, "backbone": {"precision": precision}})
    return artifacts


def evaluate(folder: Path, model: RoundingModel, precision: str, require_precision: int) -> list[str]:
    """Run the Evaluator; return the breed that the model predicts for each photo."""
    artifacts = write_artifacts(folder, model, precision)
    Evaluator.test_call(
        **artifacts,
        split="test",
        signature=DEFAULT_SIGNATURE,
        require_precision=require_precision,
        batch=BATCH,
        code_digest="",
        beam_pipeline=beam.Pipeline(argv=load("demo").beam.pipeline_args()),
    )
    outcomes = read_outcomes(artifacts["evaluation"].uri)
    assert len(outcomes) == PHOTOS
    return [row["predicted"] for row in outcomes]


def predicted(folder: Path, require_precision: int) -> set[str]:
    """Evaluate a model in bfloat16; return the predicted breeds."""
    return set(evaluate(folder, RoundingModel(), "bfloat16", require_precision))


def test_all_batches_have_the_maximum_size_except_the_last_one(tmp_path):
    assert sorted(evaluate(tmp_path, BatchSizeModel(), "float32", require_precision=0)) == ["1", "2", "2", "2", "2"]


@needs_amx
def test_a_bfloat16_model_is_evaluated_in_bfloat16(tmp_path):
    assert in_new_process(predicted, tmp_path, 1) == {"bfloat16"}


def test_a_champion_in_bfloat16_is_evaluated_in_float32_on_a_cpu_without_amx(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    assert predicted(tmp_path, require_precision=0) == {"float32"}


def test_a_candidate_in_bfloat16_is_not_evaluated_on_a_cpu_without_amx(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    with pytest.raises(serving.precision.PrecisionError, match="precision: bfloat16 needs a CPU with AMX"):
        predicted(tmp_path, require_precision=1)
