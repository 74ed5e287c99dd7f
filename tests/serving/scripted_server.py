"""A model server that answers as a test says, and remembers how it was asked."""

import threading
from concurrent import futures
from typing import NamedTuple

import grpc

from serving import protos
from tests.serving.model_server.servers import DEADLINE

HANG = "hang"


class Asked(NamedTuple):
    """A request.

    Attributes:
        seconds_left: of its deadline.
        metadata: sent beside it.
    """

    seconds_left: float
    metadata: dict[str, str]


class ScriptedServer:
    """Answers request by request with what `script` says, then well.

    Args:
        script: a gRPC code to fail with, HANG, or an answer.

    Attributes:
        asked: the requests that have arrived.
        port: of gRPC.
    """

    def __init__(self, *script: grpc.StatusCode | str | protos.PredictResponse):
        self.asked: list[Asked] = []
        self._script = list(script)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(
            self._predict, protos.PredictRequest.FromString, protos.PredictResponse.SerializeToString
        )
        service, method = protos.PREDICT.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def _predict(self, request: protos.PredictRequest, context: grpc.ServicerContext) -> protos.PredictResponse:
        self.asked.append(Asked(context.time_remaining(), dict(context.invocation_metadata())))
        said = self._script.pop(0) if self._script else answer()
        if said == HANG:
            given_up = threading.Event()  # by the client's deadline
            if context.add_callback(given_up.set):
                given_up.wait(DEADLINE)
        if isinstance(said, grpc.StatusCode):
            context.abort(said, "as the script says")
        return said


def answer(breeds: tuple[str, ...] = ("Rex", "Van"), probability: float = 0.5) -> protos.PredictResponse:
    """Of one photo; each breed is as probable."""
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
