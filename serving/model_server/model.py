"""A loaded version of a model: a SavedModel with its own session, as in TensorFlow Serving."""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_files import WARMUP_FILE
from serving.model_server import tensors
from serving.model_server.batching import BatchScheduler, Step
from serving.model_server.monitoring import Metrics
from serving.model_server.status import Code, ServingError, as_serving_error, invalid

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
_MAX_WARMUP_RECORDS = 1000

Arrays = Mapping[str, np.ndarray]


class Model:
    """A loaded and warmed-up SavedModel. `predict` is thread-safe; call `close` when no thread uses the model.

    Args:
        name: Name of the model.
        version: Version number.
        path: Directory of the SavedModel.
        flags: Parsed flags: `saved_model_tags`, `enable_model_warmup`, `num_request_iterations_for_warmup`,
            `tensorflow_*`.
        scheduler: Scheduler that batches concurrent requests; None disables batching.
        metrics: Metrics that record runs and loads.

    Attributes:
        signatures: SignatureDef by name.

    Raises:
        ServingError: If the model cannot be loaded or a warmup request fails.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        flags: argparse.Namespace,
        scheduler: BatchScheduler | None,
        metrics: Metrics,
    ):
        self.name = name
        self.version = version
        self._scheduler = scheduler
        self._metrics = metrics
        self._steps: dict[tuple, Step] = {}
        options = config_pb2.ConfigProto(
            allow_soft_placement=True,
            intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism,
            inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism,
        )
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=options)
        started = time.perf_counter()
        try:
            with graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, flags.saved_model_tags.split(","), path)
            # Copies, because a message in a MetaGraphDef keeps all of it in memory, with its graph.
            self.signatures = {name: copy.deepcopy(signature) for name, signature in loaded.signature_def.items()}
            metrics.loaded(path, "success", time.perf_counter() - started)
            if flags.enable_model_warmup:
                self._warm_up(Path(path) / WARMUP_FILE, flags.num_request_iterations_for_warmup)
        except Exception as error:
            self.close()
            metrics.loaded(path, "fail", time.perf_counter() - started)
            raise _load_error(error) from error

    def close(self) -> None:
        """Free the memory."""
        self._steps.clear()
        self._session.close()

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """Return the signature with this name; an empty name means `serving_default`.

        Raises:
            ServingError: With FAILED_PRECONDITION, if the model has no such signature.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return self.signatures[name]

    def predict(
        self, signature_name: str, inputs: Arrays, output_filter: Sequence[str] = (), timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature_name: Name of the signature; empty for `serving_default`.
            inputs: Values by input name; string tensors are object arrays of bytes.
            output_filter: Names of the outputs to return; empty for all.
            timeout: Time limit in seconds.

        Returns:
            Values by output name.

        Raises:
            ServingError: If the request is invalid or fails. The message is that of TensorFlow Serving or TensorFlow.
        """
        signature = self.signature(signature_name)
        _check_inputs(signature, inputs)
        _check_outputs(signature, output_filter)
        outputs = sorted(output_filter or signature.outputs)
        values = [inputs[alias] for alias in sorted(signature.inputs)]
        started = time.perf_counter()
        try:
            if self._scheduler:
                results = self._scheduler.run(self._step(signature, outputs, None), values, timeout)
            else:
                results = self._step(signature, outputs, timeout)(*values)
        except Exception as error:
            raise as_serving_error(error) from error
        self._metrics.ran(self.name, time.perf_counter() - started)
        return dict(zip(outputs, results, strict=True))

    def _step(self, signature: meta_graph_pb2.SignatureDef, outputs: list[str], timeout: float | None) -> Step:
        """Return a function that computes these outputs. It is cached: TensorFlow prepares the graph for each once."""
        feeds = [signature.inputs[alias].name for alias in sorted(signature.inputs)]
        fetches = [signature.outputs[alias].name for alias in outputs]
        key = (*feeds, None, *fetches, timeout)
        if key not in self._steps:
            options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
            options.run_options.timeout_in_ms = round(1000 * timeout) if timeout else 0
            # Not `Session.run`: its checks in Python raise errors with other messages than TensorFlow Serving.
            self._steps.setdefault(key, self._session._make_callable_from_options(options))
        return self._steps[key]

    def _warm_up(self, path: Path, iterations: int) -> None:
        if not path.is_file():
            return
        started = time.perf_counter()
        for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
            if number >= _MAX_WARMUP_RECORDS:
                raise invalid(
                    f"Number of warmup records exceeds the maximum ({_MAX_WARMUP_RECORDS}) at {path}",
                )
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if log.WhichOneof("log_type") != "predict_log":
                raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {log.WhichOneof('log_type')}")
            request = log.predict_log.request
            values = {alias: tensors.decode(alias, tensor) for alias, tensor in request.inputs.items()}
            for _ in range(iterations):
                self.predict(request.model_spec.signature_name, values, request.output_filter)
        self._metrics.warmed_up(str(path.parents[1]), time.perf_counter() - started)


def _load_error(error: Exception) -> ServingError:
    if isinstance(error, OSError | RuntimeError):  # not a SavedModel, or no graph with these tags
        return ServingError(Code.NOT_FOUND, str(error))
    return as_serving_error(error)


def _check_inputs(signature: meta_graph_pb2.SignatureDef, inputs: Arrays) -> None:
    extra, missing = inputs.keys() - signature.inputs.keys(), signature.inputs.keys() - inputs.keys()
    if len(inputs) != len(signature.inputs):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)}"
            f" len({{{_joined(inputs)}}}) != len({{{_joined(signature.inputs)}}})."
            f" Sent extra: {{{_joined(extra)}}}. Missing but required: {{{_joined(missing)}}}."
        )
    if extra:
        raise invalid(
            f"input tensor alias not found in signature: {min(extra)}."
            f" Inputs expected to be in the set {{{_joined(signature.inputs)}}}."
        )
    for index, alias in enumerate(sorted(signature.inputs)):
        expected = tf.dtypes.as_dtype(signature.inputs[alias].dtype)
        if inputs[alias].dtype != expected.as_numpy_dtype:
            actual = tf.dtypes.as_dtype(inputs[alias].dtype)
            raise invalid(
                f"Expects arg[{index}] to be {tensors.type_name(expected)} but {tensors.type_name(actual)} is provided"
            )


def _check_outputs(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> None:
    if not signature.inputs or not signature.outputs:
        which = "output" if signature.inputs else "input"
        raise ServingError(Code.INTERNAL, f"Expected at least one {which} Tensor in prediction signature.")
    for index, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias}"
                f" Outputs expected to be in the set {{{_joined(signature.outputs)}}}."
            )
        if alias in output_filter[:index]:
            raise invalid(f"duplicate output tensor alias: {alias}")


def _joined(names) -> str:
    return ",".join(sorted(names))
