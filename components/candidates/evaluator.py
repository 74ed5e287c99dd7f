"""Evaluator component: evaluates a model on one split with TensorFlow Model Analysis and records each prediction."""

import json
import os
from collections import defaultdict
from collections.abc import Callable
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
from components.conformal import explanation_metrics
from components.evaluation_result import read_outcomes
from components.file_names import METRICS_FILE, OUTCOMES_FILE
from components.json_files import read_json, write_json
from components.kubeflow_ui import set_confusion_matrix, set_metrics
from components.photo_features import photo_features
from components.statistical_tests import wilson_interval
from serving import precision
from serving.model_files import EXPLAIN_SIGNATURE, MODEL_RECORD_FILE

_CALIBRATION_BINS = 10


def eval_config(signature: str) -> config_pb2.EvalConfig:
    """Return the configuration of TFMA: metrics overall and per breed.

    The model's signature `transform_labels` encodes the labels.
    """
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
    require_precision: Parameter[int],
    batch: Parameter[int],
    code_digest: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Write the results of TFMA, `metrics.json` (a summary) and `outcomes.jsonl` (one line per photo).

    If `model` has no SavedModel, as when there is no champion, `metrics.json` contains null. The model is computed in
    the precision of its record.

    Args:
        examples: Photos or embeddings.
        schema: Schema of the examples.
        model: Model to evaluate.
        evaluation: Results of TFMA, `metrics.json` and `outcomes.jsonl`.
        metrics: Metrics for the Kubeflow UI.
        confusion: Confusion matrix for the Kubeflow UI.
        split: Name of the split to evaluate.
        signature: Signature of the model whose inputs are features of the examples.
        require_precision: 1 to fail on a CPU that cannot compute in the precision of the model; 0 to use float32.
        batch: Maximum number of examples in one call of the model, which limits memory.
        code_digest: Digest of the modules that the component runs.
        beam_pipeline: Beam pipeline that runs the evaluation.

    Raises:
        PrecisionError: If a CPU cannot compute in the precision of the model, and `require_precision` is 1.
    """
    path = path_utils.serving_model_path(model.uri)
    if not fileio.exists(os.path.join(path, "saved_model.pb")):
        write_json(evaluation.uri, METRICS_FILE, None)
        set_metrics(metrics, {})
        set_confusion_matrix(confusion, None)
        return
    config = eval_config(signature)
    record = read_json(path, MODEL_RECORD_FILE)
    shared_model = tfma.default_eval_shared_model(path, eval_config=config)
    shared_model.model_loader.construct_fn = _load_in_precision(
        precision.precision_of(record), bool(require_precision), shared_model.model_loader.construct_fn
    )
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
            # Without a size, Beam derives one from durations and often calls the network with one or two photos.
            | "Read" >> tfxio.BeamSource(batch)
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
    summary = _summarize(evaluation.uri, record, signature)
    write_json(evaluation.uri, METRICS_FILE, summary)
    evaluation.set_float_custom_property("accuracy", summary["overall"]["accuracy"])
    set_metrics(metrics, _ui_metrics(summary))
    set_confusion_matrix(confusion, summary["confusion"])


def _load_in_precision(recorded: str, is_required: bool, load: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that loads a model with `load`, and makes the worker that calls it compute in its precision."""

    def load_in_precision() -> Any:
        if is_required:
            precision.require(recorded)
        precision.use(recorded)
        return load()

    return load_in_precision


def _ui_metrics(summary: dict[str, Any]) -> dict[str, float | None]:
    """Metrics of metrics.json that the Kubeflow UI shows."""
    overall = summary["overall"]
    low, high = overall["accuracy_ci95"]
    return {
        **{name: overall[name] for name in ("accuracy", "loss", "top3_accuracy", "photos")},
        "accuracy_low95": low,
        "accuracy_high95": high,
        "expected_calibration_error": summary["calibration"]["expected_calibration_error"],
        **_ui_explanation(summary["explain"] or {}),
    }


def _ui_explanation(explain: dict[str, Any]) -> dict[str, float | None]:
    sets, flagged = explain.get("sets") or {}, explain.get("flagged") or {}
    return {
        "set_coverage": sets.get("coverage"),
        "mean_set_size": sets.get("mean_size"),
        "unfamiliar_share": flagged.get("share"),
    }


class _WriteOutcomes(beam.PTransform):
    """Beam transform that writes the outcome of each photo to a JSON Lines file and returns the extracts unchanged."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        """Write one line for each of `extracts` and return `extracts`."""
        _ = (
            extracts
            | "Outcome" >> beam.Map(_outcome)
            | "Line" >> beam.Map(json.dumps, sort_keys=True)
            | "Write" >> beam.io.WriteToText(self._path, num_shards=1, shard_name_template="")
        )
        return extracts


def _outcome(extracts: dict[str, Any]) -> dict[str, Any]:
    """Line of `outcomes.jsonl`.

    `confidence` is the probability of the predicted breed; `probability` is that of the true breed (0 if the model has
    no such breed). With the signature `explain`, `in_set` is whether the prediction set contains the true breed,
    `set_size` the number of breeds in it, and `unfamiliar` the flag; they are absent if the model does not return them.
    The features of `components.photo_features` follow, if the model returns the embedding.
    """
    features, predictions = extracts[tfma.FEATURES_KEY], extracts[tfma.PREDICTIONS_KEY]
    breeds = [name.decode() for name in np.ravel(predictions["breeds"])]
    probabilities = np.ravel(predictions["probabilities"])
    breed = np.ravel(features["breed"])[0].decode()
    top = int(np.argmax(probabilities))
    explanation = {}
    if "in_set" in predictions:
        prediction_set = {name for name, in_set in zip(breeds, np.ravel(predictions["in_set"]), strict=True) if in_set}
        explanation |= {"in_set": breed in prediction_set, "set_size": len(prediction_set)}
    if "unfamiliar" in predictions:
        explanation["unfamiliar"] = bool(np.ravel(predictions["unfamiliar"])[0])
    if "embedding" in predictions:
        explanation |= photo_features(
            np.ravel(features["image_bytes"])[0],
            np.ravel(predictions["embedding"]),
            np.ravel(predictions["unfamiliarity"])[0],
        )
    return {
        "path": np.ravel(features["path"])[0].decode(),
        "content_hash": np.ravel(features["content_hash"])[0].decode(),
        "breed": breed,
        "predicted": breeds[top],
        "correct": breeds[top] == breed,
        "confidence": round(float(probabilities[top]), 6),
        "probability": round(float(probabilities[breeds.index(breed)]), 6) if breed in breeds else 0.0,
        **explanation,
    }


def _summarize(uri: str, record: dict[str, Any], signature: str) -> dict[str, Any]:
    """Content of `metrics.json`. `explain` is None unless the signature `explain` was evaluated.

    Args:
        uri: Directory with the results of TFMA and `outcomes.jsonl`.
        record: Model record; see `serving.model_files`.
        signature: Signature that was evaluated.
    """
    result = tfma.load_eval_result(uri)
    overall, breeds = {}, {}
    for slice_key, values in result.slicing_metrics:
        values_by_metric = {
            name: value["doubleValue"]
            for name, value in values[""][""].items()
            if name in ("accuracy", "loss", "top3_accuracy", "photos")
        }
        photos = round(values_by_metric["photos"])
        interval = wilson_interval(round(values_by_metric["accuracy"] * photos), photos)
        slice_metrics = {**values_by_metric, "photos": photos, "accuracy_ci95": list(interval)}
        if slice_key:
            breeds[slice_key[0][1]] = slice_metrics
        else:
            overall = slice_metrics
    outcomes, names = read_outcomes(uri), record["breeds"]
    is_explained = signature == EXPLAIN_SIGNATURE
    return {
        "overall": overall,
        "breeds": dict(sorted(breeds.items())),
        "confusion": _confusion(result, names),
        "calibration": calibration(outcomes),
        "explain": explanation_metrics(record["explain"], len(names), outcomes) if is_explained else None,
    }


def _confusion(result: tfma.EvalResult, breeds: list[str]) -> dict[str, Any]:
    """Confusion matrix: `rows[i][j]` is the number of photos of `breeds[i]` that were predicted as `breeds[j]`."""
    rows = [[0] * len(breeds) for _ in breeds]
    plots = next(plots for slice_key, plots in result.plots if not slice_key)
    matrix = plots[""][""]["multiClassConfusionMatrixAtThresholds"]["matrices"][0]
    for entry in matrix["entries"]:
        actual, predicted = entry.get("actualClassId", 0), entry.get("predictedClassId", 0)
        if min(actual, predicted) >= 0:
            rows[actual][predicted] = round(entry["numWeightedExamples"])
    return {"breeds": breeds, "rows": rows}


def calibration(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Reliability bins and expected calibration error of the predicted breed (Guo et al., ICML 2017)."""
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
