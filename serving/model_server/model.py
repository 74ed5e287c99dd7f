"""One version of a model: a SavedModel in a session of its own, as TensorFlow Serving runs it."""

import argparse
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
_MOST_WARMUP_RECORDS = 1000

Arrays = Mapping[str, np.ndarray]


class Model:
    """A loaded and warmed SavedModel. It may be run from many threads; `close` it when none does any more.

    Args:
        name: of the model.
        version: number of the version.
        path: directory of the SavedModel.
        flags: `saved_model_tags`, `enable_model_warmup`, `num_request_iterations_for_warmup`, `tensorflow_*`.
        scheduler: batches concurrent requests; None: each is run alone.
        metrics: counts runs and loads.

    Attributes:
        signatures: SignatureDef by name.

    Raises:
        ServingError: it cannot be loaded, or a warmup request failed.
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
            self.signatures: Mapping[str, meta_graph_pb2.SignatureDef] = loaded.signature_def
            metrics.loaded(path, "success", time.perf_counter() - started)
            if flags.enable_model_warmup:
                self._warm_up(Path(path) / WARMUP_FILE, flags.num_request_iterations_for_warmup)
        except Exception as error:
            self.close()
            metrics.loaded(path, "fail", time.perf_counter() - started)
            raise _load_error(error) from error

    def close(self) -> None:
        """Frees the memory."""
        self._steps.clear()
        self._session.close()

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """The signature of that name; no name is `serving_default`.

        Raises:
            ServingError: FAILED_PRECONDITION, there is none.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return self.signatures[name]

    def predict(
        self, signature_name: str, inputs: Arrays, output_filter: Sequence[str] = (), timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
            signature_name: empty for `serving_default`.
            inputs: a value for each input of the signature, strings as objects of type bytes.
            output_filter: outputs that are wanted; empty: all.
            timeout: seconds.

        Returns:
            Values by the names of the outputs.

        Raises:
            ServingError: what TensorFlow Serving says of such a request, or TensorFlow of such values.
        """
        signature = self.signature(signature_name)
        _check_inputs(signature, inputs)
        _check_outputs(signature, output_filter)
        outputs = sorted(output_filter or signature.outputs)
        values = [inputs[alias] for alias in sorted(signature.inputs)]
        started = time.perf_counter()
        try:
            if self._scheduler and not output_filter:
                answer = self._scheduler.run(self._step(signature, outputs, None), values, timeout)
            else:
                answer = self._step(signature, outputs, timeout)(*values)
        except Exception as error:
            raise as_serving_error(error) from error
        self._metrics.ran(self.name, time.perf_counter() - started)
        return dict(zip(outputs, answer, strict=True))

    def _step(self, signature: meta_graph_pb2.SignatureDef, outputs: list[str], timeout: float | None) -> Step:
        """What runs these outputs. TensorFlow prepares the graph for each once, so they are kept."""
        feeds = [signature.inputs[alias].name for alias in sorted(signature.inputs)]
        fetches = [signature.outputs[alias].name for alias in outputs]
        key = (*feeds, None, *fetches, timeout)
        if key not in self._steps:
            options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
            options.run_options.timeout_in_ms = round(1000 * timeout) if timeout else 0
            # `Session.run` would check values in Python first, with texts of its own.
            self._steps.setdefault(key, self._session._make_callable_from_options(options))
        return self._steps[key]

    def _warm_up(self, path: Path, iterations: int) -> None:
        if not path.is_file():
            return
        started = time.perf_counter()
        for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
            if number >= _MOST_WARMUP_RECORDS:
                raise invalid(
                    f"Number of warmup records exceeds the maximum ({_MOST_WARMUP_RECORDS}) at {path}",
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
    if isinstance(error, OSError | RuntimeError):  # no SavedModel there, or none with these tags
        return ServingError(Code.NOT_FOUND, str(error))
    return as_serving_error(error)


def _check_inputs(signature: meta_graph_pb2.SignatureDef, inputs: Arrays) -> None:
    extra, missing = inputs.keys() - signature.inputs.keys(), signature.inputs.keys() - inputs.keys()
    if len(inputs) != len(signature.inputs):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)}"
            f" len({{{_list(inputs)}}}) != len({{{_list(signature.inputs)}}})."
            f" Sent extra: {{{_list(extra)}}}. Missing but required: {{{_list(missing)}}}."
        )
    if extra:
        raise invalid(
            f"input tensor alias not found in signature: {min(extra)}."
            f" Inputs expected to be in the set {{{_list(signature.inputs)}}}."
        )
    for index, alias in enumerate(sorted(signature.inputs)):
        expected = tf.dtypes.as_dtype(signature.inputs[alias].dtype)
        if inputs[alias].dtype != expected.as_numpy_dtype:
            given = tf.dtypes.as_dtype(inputs[alias].dtype)
            raise invalid(
                f"Expects arg[{index}] to be {tensors.type_name(expected)} but {tensors.type_name(given)} is provided"
            )


def _check_outputs(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> None:
    if not signature.inputs or not signature.outputs:
        which = "output" if signature.inputs else "input"
        raise ServingError(Code.INTERNAL, f"Expected at least one {which} Tensor in prediction signature.")
    for index, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias}"
                f" Outputs expected to be in the set {{{_list(signature.outputs)}}}."
            )
        if alias in output_filter[:index]:
            raise invalid(f"duplicate output tensor alias: {alias}")


def _list(names) -> str:
    return ",".join(sorted(names))
