"""Implementation of the requests, shared by the gRPC and REST APIs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from serving.model_server import tensors
from serving.model_server.manager import Manager, State
from serving.model_server.model import DEFAULT_SIGNATURE, Model
from serving.model_server.monitoring import Metrics
from serving.model_server.status import Code, ServingError, as_serving_error, invalid


class Service:
    """Request handler. It raises every error that a client can cause as a ServingError.

    Args:
        manager: Manager of the loaded models.
        metrics: Metrics that record the requests.
    """

    def __init__(self, manager: Manager, metrics: Metrics):
        self._manager = manager
        self._metrics = metrics

    @contextmanager
    def predicting(self, spec: model_pb2.ModelSpec, entrypoint: str) -> Iterator[Model]:
        """Yield the model for a Predict request and record the request; `entrypoint` is GRPC or REST."""
        started, status = time.perf_counter(), "OK"
        try:
            with self._manager.use(spec) as model:
                yield model
        except Exception as error:
            status = as_serving_error(error).name
            raise
        else:
            self._metrics.succeeded(spec.name, "predict", entrypoint, time.perf_counter() - started)
        finally:
            self._metrics.requested(spec.name, status)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Run a signature of a model."""
        _require_spec(request)
        signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        with self.predicting(request.model_spec, "GRPC") as model:
            model.signature(signature_name)
            inputs = {alias: tensors.decode(alias, tensor) for alias, tensor in request.inputs.items()}
            outputs = model.predict(signature_name, inputs, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = model.version
        response.model_spec.signature_name = signature_name
        for alias, values in outputs.items():
            response.outputs[alias].CopyFrom(tensors.encode(values))
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the signatures of a model."""
        _require_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._manager.use(request.model_spec) as model:
            for name, signature in model.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        response.model_spec.name = model.name
        response.model_spec.version.value = model.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the states of the versions of a model; a label in the request is ignored."""
        _require_spec(request)
        spec = request.model_spec
        versions = self._manager.statuses(spec.name)
        if spec.HasField("version"):
            versions = [version for version in versions if version.number == spec.version.value]
            if not versions:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}")
        if not versions:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in versions:
            version_status = response.model_version_status.add(version=version.number, state=State.Name(version.state))
            version_status.status.SetInParent()
            if version.error:
                version_status.status.error_code = version.error.number
                version_status.status.error_message = version.error.message
        return response


def _require_spec(request) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
