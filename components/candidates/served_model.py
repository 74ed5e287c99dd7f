"""The served model: backbones and a head in one SavedModel that maps the bytes of photos to breed probabilities."""

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from components import saved_model
from components.digests import json_digest
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import read_json, write_json
from serving import precision
from serving.model_files import CLIENT_OUTPUTS, EXPLAIN_SIGNATURE, MODEL_RECORD_FILE, WARMUP_FILE

_LATENCY_CALLS = 15


class ServedModel(tf.Module):
    """One or more backbones, Transform's graph and a head in one SavedModel. Each variable is saved once.

    Signatures:
        serving_default: image_bytes string [n] (JPEG or PNG of any size) -> probabilities float32 [n, breeds] and
            breeds string [n, breeds], in the same order.
        top_k: image_bytes string [n] -> probabilities float32 [n, k] and breeds string [n, k], most probable first;
            k is the smaller of `top_k` and the number of breeds.
        explain: image_bytes string [n] -> the outputs of serving_default and those of
            `pipeline.modules.explanation.Explainer`.
        classify_embedding: one input float32 [n, d] for each output of the backbones -> same outputs as
            serving_default.
        transform_labels: breed string [n] -> label int64 [n].

    Args:
        backbones: Directories of the SavedModels of the backbones.
        head: Directory of the SavedModel of a `pipeline.modules.candidate_model.CandidateModel`. It classifies the
            embeddings of `backbones`.
        top_k: Maximum number of breeds that the signature `top_k` returns.

    Raises:
        ValueError: If the backbones do not return the embeddings that the head takes.
    """

    def __init__(self, backbones: Sequence[str], head: str, top_k: int):
        super().__init__()
        records = [read_json(path, BACKBONE_RECORD_FILE) for path in backbones]
        self._backbones = [tf.saved_model.load(path) for path in backbones]
        self._head = tf.saved_model.load(head)
        self._image_size = max(record["image_size"] for record in records)
        head_record = read_json(head, MODEL_RECORD_FILE)
        self._record = _served_model_record(records, head_record, top_k)
        classify = self._head.signatures["classify_embedding"]
        explain_embedding = self._head.signatures["explain_embedding"]
        encode_labels = self._head.signatures["transform_labels"]
        embedding_sizes = {name: size for record in records for name, size in record["embedding_sizes"].items()}
        if embedding_sizes != head_record["embedding_sizes"]:
            raise ValueError(
                f"{head}: the head takes embeddings of the lengths {head_record['embedding_sizes']}, but the backbones "
                f"return {embedding_sizes}"
            )
        breeds = len(head_record["breeds"])

        def embed(image_bytes):
            embeddings = {}
            for backbone in self._backbones:
                embeddings |= backbone.signatures["serving_default"](image_bytes=image_bytes)
            return embeddings

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
        def serve(image_bytes):
            return classify(**embed(image_bytes))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
        def serve_top_k(image_bytes):
            outputs = serve(image_bytes)
            probabilities, indices = tf.math.top_k(outputs["probabilities"], k=min(top_k, breeds))
            return {"probabilities": probabilities, "breeds": tf.gather(outputs["breeds"], indices, batch_dims=1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
        def explain(image_bytes):
            return explain_embedding(**embed(image_bytes))

        @tf.function(input_signature=embedding_specs(embedding_sizes), autograph=False)
        def classify_embedding(*embeddings):
            return classify(**dict(zip(embedding_sizes, embeddings, strict=True)))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")], autograph=False)
        def transform_labels(breed):
            return encode_labels(breed=breed)

        self.endpoints = {
            "serving_default": serve,
            "top_k": serve_top_k,
            EXPLAIN_SIGNATURE: explain,
            "classify_embedding": classify_embedding,
            "transform_labels": transform_labels,
        }

    def save(self, path: str, model_name: str) -> None:
        """Write the SavedModel, its record (see `serving.model_files`) and warmup requests for TensorFlow Serving.

        Args:
            path: Directory of the SavedModel.
            model_name: Name of the model in TensorFlow Serving, used in the warmup requests.
        """
        saved_model.save(self, path, self.endpoints, for_tensorflow_serving=True)
        write_json(path, MODEL_RECORD_FILE, self._record)
        with tf.io.TFRecordWriter(os.path.join(path, WARMUP_FILE)) as writer:
            for signature in ("serving_default", "top_k", EXPLAIN_SIGNATURE):
                outputs = self.endpoints[signature].get_concrete_function().structured_outputs
                request = _warmup_request(model_name, signature, [name for name in CLIENT_OUTPUTS if name in outputs])
                writer.write(request.SerializeToString())

    def latency_ms(self) -> float:
        """Median latency of `serving_default` for one photo of the backbones' input size, in milliseconds.

        A first call, which traces the graph, is not counted. This process computes in the precision of the backbones,
        also afterwards.
        """
        precision.use(precision.precision_of(self._record))
        shape = [self._image_size, self._image_size, 3]
        noise = tf.cast(tf.random.stateless_uniform(shape, [0, 0], 0, 256, tf.int32), tf.uint8)
        photo = tf.io.encode_jpeg(noise)[tf.newaxis]
        durations = []  # seconds
        for _ in range(_LATENCY_CALLS + 1):
            started = time.perf_counter()
            self.endpoints["serving_default"](photo)
            durations.append(time.perf_counter() - started)
        return 1000 * statistics.median(durations[1:])


def embedding_specs(sizes: dict[str, int]) -> list[tf.TensorSpec]:
    """Inputs of the signature `classify_embedding`: one float32 [n, d] for each embedding, by name.

    Args:
        sizes: Length of each embedding.
    """
    return [tf.TensorSpec([None, size], tf.float32, name) for name, size in sizes.items()]


def _served_model_record(backbones: list[dict[str, Any]], head: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Record of the served model: the record of the head, plus the backbones and the total number of parameters."""
    backbone = backbones[0] if len(backbones) == 1 else _combined_backbone(backbones)
    record = {key: value for key, value in head.items() if key != "embedding_sizes"} | {
        "backbone": backbone,
        "settings": head["settings"] | {"top_k": top_k},
        "parameters": backbone["parameters"] + head["parameters"],
    }
    # The gate treats two models with the same digest as the same model ("nothing new"). The thresholds in `explain`
    # follow from the rest of the record, but their last digits differ between machines.
    return record | {"model_digest": json_digest({key: value for key, value in record.items() if key != "explain"})}


def _combined_backbone(backbones: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the records of several backbones into the record of one; `parts` lists the originals."""
    return {
        "name": "+".join(backbone["name"] for backbone in backbones),
        "architecture": "+".join(backbone["architecture"] for backbone in backbones),
        "weights": "+".join(sorted({backbone["weights"] for backbone in backbones})),
        "weights_digest": json_digest([backbone["weights_digest"] for backbone in backbones]),
        "image_size": max(backbone["image_size"] for backbone in backbones),
        "precision": backbones[0]["precision"],  # the same for all backbones of a run
        "embedding_sizes": {name: size for backbone in backbones for name, size in backbone["embedding_sizes"].items()},
        "parameters": sum(backbone["parameters"] for backbone in backbones),
        "multiply_adds": sum(backbone["multiply_adds"] for backbone in backbones),
        "parts": backbones,
    }


def _warmup_request(model_name: str, signature: str, outputs: Sequence[str]) -> prediction_log_pb2.PredictionLog:
    """Request for the outputs that clients read, because TensorFlow prepares the graph for each set of outputs."""
    gray = tf.io.encode_jpeg(tf.fill([256, 256, 3], tf.constant(128, tf.uint8)))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    request.output_filter.extend(outputs)
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([gray.numpy()]))
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
