"""A model server with scripted responses that records its requests."""

import threading
from concurrent import futures
from typing import NamedTuple

import grpc

from serving import protos
from tests.serving.model_server.servers import DEADLINE

HANG = "hang"


class RecordedRequest(NamedTuple):
    """A received request.

    Attributes:
        seconds_left: Seconds until its deadline.
        metadata: Metadata of the call.
        outputs: Names of the requested outputs.
    """

    seconds_left: float
    metadata: dict[str, str]
    outputs: list[str]


class ScriptedServer:
    """A server with scripted responses to its first predictions; later requests succeed.

    Args:
        script: Result of each prediction: a gRPC status code, HANG, or a response.

    Attributes:
        requests: Requests for predictions received so far.
        metadata_requests: Number of requests for metadata received so far.
        port: gRPC port.
    """

    def __init__(self, *script: grpc.StatusCode | str | protos.PredictResponse):
        self.requests: list[RecordedRequest] = []
        self.metadata_requests = 0
        self._script = list(script)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(
            self._predict, protos.PredictRequest.FromString, protos.PredictResponse.SerializeToString
        )
        service, method = protos.PREDICT.strip("/").split("/")
        metadata = grpc.unary_unary_rpc_method_handler(
            self._metadata, protos.GetModelMetadataRequest.FromString, protos.GetModelMetadataResponse.SerializeToString
        )
        handlers = {method: handler, "GetModelMetadata": metadata}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def _metadata(self, request: protos.GetModelMetadataRequest, context) -> protos.GetModelMetadataResponse:
        """Return the metadata of a version whose only signature, `serving_default`, has the output `embedding`."""
        self.metadata_requests += 1
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = "catbreeds"
        response.model_spec.version.value = 7
        signatures = protos.SignatureDefMap()
        for name in ("breeds", "embedding", "probabilities"):
            signatures.signature_def["serving_default"].outputs[name].SetInParent()
        response.metadata["signature_def"].value = signatures.SerializeToString()
        return response

    def _predict(self, request: protos.PredictRequest, context: grpc.ServicerContext) -> protos.PredictResponse:
        metadata = dict(context.invocation_metadata())
        self.requests.append(RecordedRequest(context.time_remaining(), metadata, list(request.output_filter)))
        result = self._script.pop(0) if self._script else prediction_response()
        if result == HANG:
            ended = threading.Event()  # set at the client's deadline
            if context.add_callback(ended.set):
                ended.wait(DEADLINE)
        if isinstance(result, grpc.StatusCode):
            context.abort(result, "scripted error")
        return result


def prediction_response(breeds: tuple[str, ...] = ("Rex", "Van"), probability: float = 0.5) -> protos.PredictResponse:
    """Return a response for one photo with the same probability for each breed."""
    response = protos.PredictResponse()
    response.model_spec.name = "catbreeds"
    response.model_spec.version.value = 7
    for name, dtype in (("breeds", protos.DataType.DT_STRING), ("probabilities", protos.DataType.DT_FLOAT)):
        tensor = response.outputs[name]
        tensor.dtype = dtype
        for size in (1, len(breeds)):
            tensor.tensor_shape.dim.add(size=size)
    response.outputs["breeds"].string_val.extend(breed.encode() for breed in breeds)
    response.outputs["probabilities"].float_val.extend(probability for _ in breeds)
    return response
