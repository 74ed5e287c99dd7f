"""Asks a served model for the breed of photos, from Python.

Three ways, each in a module of its own that brings only what it needs; each has a synchronous and an asynchronous
client with the same methods, answers and errors:

    from serving.client.gateway import GatewayClient, AsyncGatewayClient    # our gateway, over HTTP
    from serving.client.grpc import GrpcClient, AsyncGrpcClient             # a model server's gRPC: the quickest
    from serving.client.rest import RestClient, AsyncRestClient             # a model server's REST

    with GatewayClient("http://localhost:8000") as client:
        answer = client.predict("photo.jpg")
        print(answer.best.breed, answer.best.probability, answer.model.version)

A photo that cannot be used is a `serving.photo.PhotoError`, whichever way it went; all else is a ClientError.
"""

from serving.client.answers import Answer, Model, ModelChoice, Prediction
from serving.client.base import AsyncClient, Client, PhotoLike
from serving.client.errors import (
    BadResponse,
    Busy,
    ClientError,
    InvalidKey,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
    Unreachable,
    WrongAddress,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "BadResponse",
    "Busy",
    "Client",
    "ClientError",
    "InvalidKey",
    "Model",
    "ModelChoice",
    "NotServed",
    "PhotoLike",
    "Prediction",
    "RequestRejected",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "WrongAddress",
]
