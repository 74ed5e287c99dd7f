"""The Evaluator computes a model in the precision of its record, or in float32 if that is allowed."""

from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, Schema
from tfx.utils import path_utils

import serving.precision
from components.artifacts import ClassificationMetrics, Metrics
from components.candidates.evaluator import Evaluator
from components.evaluation_result import read_outcomes
from components.json_files import write_json
from pipeline.settings import load
from serving.model_files import DEFAULT_SIGNATURE, MODEL_RECORD_FILE
from tests.amx import ROUNDED, SUM, needs_amx, product

BREEDS = ["Birman", "Manx"]
PHOTOS = 3


class RoundingModel(tf.Module):
    """A model that predicts Birman in float32 and Manx in bfloat16."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes):
        is_rounded = product(tf.fill(tf.shape(image_bytes), ROUNDED)) - SUM["bfloat16"] < 0.01
        manx = tf.where(is_rounded, 0.9, 0.2)
        probabilities = tf.stack([1 - manx, manx], axis=1)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(BREEDS, tf.shape(probabilities))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")])
    def transform_labels(self, breed):
        return {"label": tf.cast(breed == BREEDS[1], tf.int64)}


@pytest.fixture
def artifacts(tmp_path):
    """Artifacts of the Evaluator by name, with a model in bfloat16 and photos of Manx."""
    artifacts = {
        "examples": Examples(),
        "schema": Schema(),
        "model": Model(),
        "evaluation": ModelEvaluation(),
        "metrics": Metrics(),
        "confusion": ClassificationMetrics(),
    }
    for name, artifact in artifacts.items():
        artifact.uri = str(tmp_path / name)
    artifacts["examples"].split_names = artifact_utils.encode_split_names(["test"])
    folder = Path(artifact_utils.get_split_uri([artifacts["examples"]], "test"))
    folder.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "data.gz"), "GZIP") as writer:
        for number in range(PHOTOS):
            values = {"image_bytes": b"photo", "breed": b"Manx", "path": b"a.jpg", "content_hash": str(number).encode()}
            values |= {"near_duplicate_group": values["content_hash"]}
            feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for k, v in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    (tmp_path / "schema").mkdir()
    schema = "".join(
        f'feature {{ name: "{name}" type: BYTES presence {{ min_fraction: 1 }} shape {{ dim {{ size: 1 }} }} }}\n'
        for name in ("image_bytes", "breed", "path", "content_hash", "near_duplicate_group")
    )
    (tmp_path / "schema" / "schema.pbtxt").write_text(schema)
    model, path = RoundingModel(), path_utils.serving_model_dir(artifacts["model"].uri)
    signatures = {DEFAULT_SIGNATURE: model.classify, "transform_labels": model.transform_labels}
    tf.saved_model.save(model, path, signatures=signatures)
    write_json(path, MODEL_RECORD_FILE, {"breeds": BREEDS, "backbone": {"precision": "bfloat16"}})
    return artifacts


def predicted(artifacts: dict, require_precision: int) -> set[str]:
    """Run the Evaluator; return the predicted breeds."""
    Evaluator.test_call(
        **artifacts,
        split="test",
        signature=DEFAULT_SIGNATURE,
        require_precision=require_precision,
        code_digest="",
        beam_pipeline=beam.Pipeline(argv=load("demo").beam.pipeline_args()),
    )
    outcomes = read_outcomes(artifacts["evaluation"].uri)
    assert len(outcomes) == PHOTOS
    return {row["predicted"] for row in outcomes}


@needs_amx
def test_a_bfloat16_model_is_evaluated_in_bfloat16(artifacts):
    assert predicted(artifacts, require_precision=1) == {"Manx"}


def test_a_champion_in_bfloat16_is_evaluated_in_float32_on_a_cpu_without_amx(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    assert predicted(artifacts, require_precision=0) == {"Birman"}


def test_a_candidate_in_bfloat16_is_not_evaluated_on_a_cpu_without_amx(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    with pytest.raises(serving.precision.PrecisionError, match="precision: bfloat16 needs a CPU with AMX"):
        predicted(artifacts, require_precision=1)
