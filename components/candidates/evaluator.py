"""Evaluator: measures a model on one split with TensorFlow Model Analysis, and notes the outcome of each photo."""

import json
import os
from collections import defaultdict
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx.dsl.component.experimental.annotations import BeamComponentParameter, InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelEvaluation, Schema
from tfx.utils import io_utils, path_utils
from tfx_bsl.tfxio import tensor_adapter, tf_example_record

from components.artifacts import ClassificationMetrics, Metrics
from components.evaluation_result import read_outcomes
from components.file_names import METRICS_FILE, OUTCOMES_FILE
from components.json_files import read_json, write_json
from components.kubeflow_ui import set_confusion_matrix, set_metrics
from components.release.statistics import wilson_interval
from serving.model_files import MODEL_RECORD_FILE

_CALIBRATION_BINS = 10


def eval_config(signature: str) -> config_pb2.EvalConfig:
    """What TFMA measures: overall and for each breed, labels numbered by the model itself."""
    metrics = [
        config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy", config='{"name": "accuracy"}'),
        config_pb2.MetricConfig(class_name="SparseCategoricalCrossentropy", config='{"name": "loss"}'),
        config_pb2.MetricConfig(class_name="SparseTopKCategoricalAccuracy", config='{"name": "top3_accuracy", "k": 3}'),
        config_pb2.MetricConfig(class_name="ExampleCount", config='{"name": "photos"}'),
        config_pb2.MetricConfig(class_name="MultiClassConfusionMatrixPlot", config='{"name": "confusion"}'),
    ]
    config = config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(
                signature_name=signature,
                prediction_key="probabilities",
                label_key="label",
                preprocessing_function_names=["transform_labels"],
            )
        ],
        metrics_specs=[config_pb2.MetricsSpec(metrics=metrics)],
        slicing_specs=[config_pb2.SlicingSpec(), config_pb2.SlicingSpec(feature_keys=["breed"])],
    )
    config.options.include_default_metrics.value = False
    return config


@component(use_beam=True)
def Evaluator(
    examples: InputArtifact[Examples],
    schema: InputArtifact[Schema],
    model: InputArtifact[Model],
    evaluation: OutputArtifact[ModelEvaluation],
    metrics: OutputArtifact[Metrics],
    confusion: OutputArtifact[ClassificationMetrics],
    split: Parameter[str],
    signature: Parameter[str],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Writes TFMA's results, `metrics.json` (their numbers) and `outcomes.jsonl` (a line for each photo).

    A `model` without a SavedModel (there is no champion) gives an empty evaluation.

    Args:
        split: name of the split to measure.
        signature: the model's signature whose inputs the examples hold.
        code_digest: of the modules that it runs.
    """
    path = path_utils.serving_model_path(model.uri)
    if not fileio.exists(os.path.join(path, "saved_model.pb")):
        write_json(evaluation.uri, METRICS_FILE, None)
        set_metrics(metrics, {})
        set_confusion_matrix(confusion, None)
        return
    config = eval_config(signature)
    shared_model = tfma.default_eval_shared_model(path, eval_config=config)
    tfxio = tf_example_record.TFExampleRecord(
        io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split)),
        schema=io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema.uri)),
        raw_record_column_name=tfma.ARROW_INPUT_COLUMN,
        telemetry_descriptors=["Evaluator"],
    )
    adapter = tensor_adapter.TensorAdapterConfig(tfxio.ArrowSchema(), tfxio.TensorRepresentations())
    outcomes = tfma.extractors.Extractor("WriteOutcomes", _WriteOutcomes(os.path.join(evaluation.uri, OUTCOMES_FILE)))
    with beam_pipeline as pipeline:
        _ = (
            pipeline
            | "Read" >> tfxio.BeamSource()
            | "Evaluate"
            >> tfma.ExtractEvaluateAndWriteResults(
                eval_shared_model=shared_model,
                eval_config=config,
                extractors=[
                    *tfma.default_extractors(
                        eval_shared_model=shared_model, eval_config=config, tensor_adapter_config=adapter
                    ),
                    outcomes,
                ],
                output_path=evaluation.uri,
                tensor_adapter_config=adapter,
            )
        )
    measured = _summarise(evaluation.uri, read_json(path, MODEL_RECORD_FILE)["breeds"])
    write_json(evaluation.uri, METRICS_FILE, measured)
    evaluation.set_float_custom_property("accuracy", measured["overall"]["accuracy"])
    set_metrics(metrics, _numbers(measured))
    set_confusion_matrix(confusion, measured["confusion"])


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    """What the Kubeflow UI shows of metrics.json."""
    overall = measured["overall"]
    low, high = overall["accuracy_ci95"]
    return {
        **{name: overall[name] for name in ("accuracy", "loss", "top3_accuracy", "photos")},
        "accuracy_low95": low,
        "accuracy_high95": high,
        "expected_calibration_error": measured["calibration"]["expected_calibration_error"],
    }


class _WriteOutcomes(beam.PTransform):
    """Writes what the model said of each photo, and hands the extracts on unchanged."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        """Extracts -> extracts."""
        _ = (
            extracts
            | "Outcome" >> beam.Map(_outcome)
            | "Line" >> beam.Map(json.dumps, sort_keys=True)
            | "Write" >> beam.io.WriteToText(self._path, num_shards=1, shard_name_template="")
        )
        return extracts


def _outcome(extracts: dict[str, Any]) -> dict[str, Any]:
    features, predictions = extracts[tfma.FEATURES_KEY], extracts[tfma.PREDICTIONS_KEY]
    breeds = [name.decode() for name in np.ravel(predictions["breeds"])]
    probabilities = np.ravel(predictions["probabilities"])
    breed = np.ravel(features["breed"])[0].decode()
    best = int(np.argmax(probabilities))
    return {
        "path": np.ravel(features["path"])[0].decode(),
        "content_hash": np.ravel(features["content_hash"])[0].decode(),
        "breed": breed,
        "predicted": breeds[best],
        "correct": breeds[best] == breed,
        "confidence": round(float(probabilities[best]), 6),
        "probability": round(float(probabilities[breeds.index(breed)]), 6) if breed in breeds else 0.0,
    }


def _summarise(uri: str, names: list[str]) -> dict[str, Any]:
    """TFMA's numbers as plain JSON, with intervals, and the calibration of the most probable breed."""
    result = tfma.load_eval_result(uri)
    overall, breeds = {}, {}
    for slice_key, values in result.slicing_metrics:
        numbers = {
            name: value["doubleValue"]
            for name, value in values[""][""].items()
            if name in ("accuracy", "loss", "top3_accuracy", "photos")
        }
        photos = round(numbers["photos"])
        interval = wilson_interval(round(numbers["accuracy"] * photos), photos)
        summary = {**numbers, "photos": photos, "accuracy_ci95": list(interval)}
        if slice_key:
            breeds[slice_key[0][1]] = summary
        else:
            overall = summary
    outcomes = read_outcomes(uri)
    return {
        "overall": overall,
        "breeds": dict(sorted(breeds.items())),
        "confusion": _confusion(result, names),
        "calibration": _calibration(outcomes),
    }


def _confusion(result: tfma.EvalResult, breeds: list[str]) -> dict[str, Any]:
    """`rows[i][j]`: photos of `breeds[i]` that were called `breeds[j]`."""
    rows = [[0] * len(breeds) for _ in breeds]
    plots = next(plots for slice_key, plots in result.plots if not slice_key)
    matrix = plots[""][""]["multiClassConfusionMatrixAtThresholds"]["matrices"][0]
    for entry in matrix["entries"]:
        actual, predicted = entry.get("actualClassId", 0), entry.get("predictedClassId", 0)
        if min(actual, predicted) >= 0:
            rows[actual][predicted] = round(entry["numWeightedExamples"])
    return {"breeds": breeds, "rows": rows}


def _calibration(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Reliability bins and expected calibration error of the top breed (Guo et al., ICML 2017)."""
    bins = defaultdict(list)
    for outcome in outcomes:
        bins[min(int(outcome["confidence"] * _CALIBRATION_BINS), _CALIBRATION_BINS - 1)].append(outcome)
    rows = [
        {
            "photos": len(bins[index]),
            "confidence": sum(o["confidence"] for o in bins[index]) / len(bins[index]),
            "accuracy": sum(o["correct"] for o in bins[index]) / len(bins[index]),
        }
        for index in sorted(bins)
    ]
    error = sum(row["photos"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(outcomes)
    return {"bins": rows, "expected_calibration_error": error}
