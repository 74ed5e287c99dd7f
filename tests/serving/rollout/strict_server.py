"""A fake model server without TensorFlow that records every configuration that could make a request fail.

In a real server, requests fail only in the moment between unloading a version and moving its label. This server always
detects it.
"""

from concurrent import futures

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

State = get_model_status_pb2.ModelVersionStatus


class StrictServer(model_service_pb2_grpc.ModelServiceServicer, prediction_service_pb2_grpc.PredictionServiceServicer):
    """A server of one model. Every version loads immediately, except those in `broken` and `slow`.

    Attributes:
        port: gRPC port.
        labels: Version by label, as requests resolve them.
        loaded: Versions that are available.
        max_loaded: Largest number of versions that were loaded at the same time.
        faults: Configurations that unloaded a version to which a label pointed.
        broken: Versions that cannot be loaded.
        slow: Versions that do not finish loading while they are in this set.
        requested: Versions in the latest configuration.
        predict_code: Status code of every response to Predict.
        status_code: Status code of every response to GetModelStatus; None returns the versions.
    """

    def __init__(self, broken: frozenset[int] = frozenset()):
        self.labels: dict[str, int] = {}
        self.loaded: set[int] = set()
        self.max_loaded = 0
        self.faults: list[str] = []
        self.broken = broken
        self.slow: set[int] = set()
        self.requested: set[int] = set()
        self.predict_code = grpc.StatusCode.UNAVAILABLE
        self.status_code: grpc.StatusCode | None = None
        self._seen: set[int] = set()
        self._failed: set[int] = set()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def HandleReloadConfigRequest(self, request, context):
        (config,) = request.config.model_config_list.config
        # Like ServerCore::ReloadConfig, it checks labels first: if one would move too early, nothing is loaded.
        for label, version in config.version_labels.items():
            if version not in self.loaded and self.labels.get(label, version) != version:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{label}: version {version} is not available")
        requested = set(config.model_version_policy.specific.versions)
        lost = {label for label, version in self.labels.items() if version not in requested}
        if lost:
            self.faults.append(f"{self.labels} -> {sorted(requested)} {dict(config.version_labels)}")
        self._failed = requested & self.broken
        # Loaded versions are not loaded again.
        self.loaded = {
            version for version in requested - self.broken if version in self.loaded or version not in self.slow
        }
        self.requested = requested
        self._seen |= requested
        self.max_loaded = max(self.max_loaded, len(self.loaded))
        self.labels = dict(config.version_labels)
        return model_management_pb2.ReloadConfigResponse()

    def GetModelMetadata(self, request, context):
        version = self.labels.get(request.model_spec.version_label)
        if version not in self.loaded:
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = version
        return response

    def Predict(self, request, context):
        context.abort(self.predict_code, "no prediction")

    def GetModelStatus(self, request, context):
        if self.status_code:
            context.abort(self.status_code, "out of order")
        self.loaded |= self.requested - self.slow - self.broken
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self.loaded:
            response.model_version_status.add(version=version, state=State.AVAILABLE)
        for version in self.requested - self.loaded - self._failed:
            response.model_version_status.add(version=version, state=State.LOADING)
        for version in self._failed:
            failed = response.model_version_status.add(version=version, state=State.END)
            failed.status.error_code, failed.status.error_message = 13, "broken"
        for version in self._seen - self.requested:  # unloaded: no error
            response.model_version_status.add(version=version, state=State.END)
        return response
