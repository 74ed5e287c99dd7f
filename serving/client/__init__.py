"""Python clients that classify cat photos with a served model.

There is one module per protocol, and each imports only the packages that its protocol needs. All clients have the same
methods, return the same types and raise the same errors:

    from serving.client.gateway import GatewayClient    # the gateway, over HTTP
    from serving.client.grpc import GrpcClient          # a model server, over gRPC; the fastest
    from serving.client.rest import RestClient          # a model server, over REST

    with GatewayClient("http://localhost:8000") as client:
        answer = client.predict("photo.jpg")
        print(answer.best.breed, answer.best.probability, answer.model.version)

`serving.client.grpc` also has `AsyncGrpcClient`, for asyncio.

A photo that cannot be used raises `serving.photo_normalization.PhotoError`; every other failure raises a ClientError.
"""

from serving.client.answers import NOT_A_CAT, UNSURE, Answer, Model, ModelChoice, Prediction
from serving.client.base import Client, PhotoLike
from serving.client.errors import (
    BadResponse,
    Busy,
    ClientError,
    InvalidKey,
    NoSuchCapture,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
    Unreachable,
    WrongAddress,
)

__all__ = [
    "NOT_A_CAT",
    "UNSURE",
    "Answer",
    "BadResponse",
    "Busy",
    "Client",
    "ClientError",
    "InvalidKey",
    "Model",
    "ModelChoice",
    "NoSuchCapture",
    "NotServed",
    "PhotoLike",
    "Prediction",
    "RequestRejected",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "WrongAddress",
]
