"""Asks for the breed of photos, whichever way: what `catbreeds predict` does."""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pipeline.console import noise_to
from pipeline.settings import Settings
from serving.client import Answer, Client, Model, ModelChoice
from serving.client.answers import ranked
from serving.client.base import normalised
from serving.client.gateway import GatewayClient
from serving.client.grpc import GrpcClient
from serving.client.rest import RestClient
from serving.registry import Registry, RegistryError


def ask_gateway(url: str, photos: Sequence[Path], api_key: str | None) -> list[Answer]:
    """See `serving.client`."""
    return _ask(GatewayClient(url, api_key), photos)


def ask_grpc(target: str, photos: Sequence[Path], model: ModelChoice) -> list[Answer]:
    """See `serving.client`."""
    return _ask(GrpcClient(target, model), photos)


def ask_rest(url: str, photos: Sequence[Path], model: ModelChoice) -> list[Answer]:
    """See `serving.client`."""
    return _ask(RestClient(url, model), photos)


def ask_workdir(config: Settings, photos: Sequence[Path]) -> list[Answer]:
    """Loads the model in service in this process.

    Raises:
        RegistryError: there is none.
        PhotoError: a photo cannot be used; the message names it.
        OSError: a file cannot be read.
    """
    registry = Registry(config.registry)
    version = registry.stable()
    if version is None:
        raise RegistryError(f"{registry.base}: no model is in service there; `catbreeds run` trains and pushes one")
    registry.record(version)
    contents = normalised(photos)
    with noise_to(Path(config.workdir) / "logs" / "predict.log"):
        from serving.probe import answer

        rows = answer(str(registry.path(version)), contents)
    model = Model(config.model_name, version)
    return [Answer(model, ranked(row["breeds"], row["probabilities"], None)) for row in rows]


def document(photos: Sequence[Path], answers: Sequence[Answer]) -> dict[str, list]:
    """Answers for programs; each photo has its model, which may be replaced between two of them."""
    rows = [
        {
            "photo": str(photo),
            "model": dataclasses.asdict(answer.model),
            "predictions": [dataclasses.asdict(prediction) for prediction in answer.predictions],
        }
        for photo, answer in zip(photos, answers, strict=True)
    ]
    return {"photos": rows}


def sentence(photo: Path, answer: Answer) -> str:
    """An answer for people."""
    best = ", ".join(f"{row.breed} {row.probability:.0%}" for row in answer.predictions[:3])
    return f"{photo}: {best} ({answer.model.name} version {answer.model.version})"


def _ask(client: Client, photos: Sequence[Path]) -> list[Answer]:
    # One at a time: servers limit the bytes of a request.
    with closing(client):
        return [client.predict(photo) for photo in photos]
