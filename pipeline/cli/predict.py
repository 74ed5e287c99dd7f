"""Asks for the breed of photos, whichever way: what `catbreeds predict` does."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.console import noise_to
from pipeline.settings import Settings
from serving.client import Answer, BadAnswer, Client, ClientError, Model, ModelChoice
from serving.client.answers import ranked
from serving.client.base import normalised
from serving.client.gateway import GatewayClient
from serving.client.grpc import GrpcClient
from serving.client.rest import RestClient
from serving.names import printable
from serving.photo import PhotoError
from serving.registry import Registry, RegistryError

# What becomes of a photo: its answer, or why it has none. The others are answered all the same.
Outcome = Answer | PhotoError | OSError | ClientError


def ask_gateway(url: str, photos: Sequence[Path], api_key: str | None) -> list[Outcome]:
    """See `serving.client`."""
    return _ask(GatewayClient(url, api_key), photos)


def ask_grpc(target: str, photos: Sequence[Path], model: ModelChoice) -> list[Outcome]:
    """See `serving.client`."""
    return _ask(GrpcClient(target, model), photos)


def ask_rest(url: str, photos: Sequence[Path], model: ModelChoice) -> list[Outcome]:
    """See `serving.client`."""
    return _ask(RestClient(url, model), photos)


def ask_workdir(config: Settings, photos: Sequence[Path]) -> list[Outcome]:
    """Loads the model in service in this process.

    Raises:
        RegistryError: there is none.
    """
    registry = Registry(config.registry)
    version = registry.stable()
    if version is None:
        raise RegistryError(f"{registry.base}: no model is in service there; `catbreeds run` trains and pushes one")
    registry.record(version)
    contents = [_usable(photo) for photo in photos]
    if not any(isinstance(content, bytes) for content in contents):
        return contents
    with noise_to(Path(config.workdir) / "logs" / "predict.log"):
        from serving.local.saved_model_process import predict

        rows = iter(predict(str(registry.path(version)), [c for c in contents if isinstance(c, bytes)]))
    model = Model(config.model_name, version)
    return [_answer(model, next(rows)) if isinstance(content, bytes) else content for content in contents]


def _usable(photo: Path) -> bytes | PhotoError | OSError:
    try:
        return normalised([photo])[0]
    except (PhotoError, OSError) as error:
        return error


def _answer(model: Model, row: dict[str, list]) -> Answer:
    return Answer(model, ranked(row["breeds"], row["probabilities"], None))


def document(photos: Sequence[Path], outcomes: Sequence[Outcome]) -> dict[str, list]:
    """Outcomes for programs; each answer has its model, which may be replaced between two of them."""

    def row(photo: Path, outcome: Outcome) -> dict:
        if not isinstance(outcome, Answer):
            return {"photo": printable(str(photo)), "error": reason(photo, outcome)}
        return {
            "photo": printable(str(photo)),
            "model": dataclasses.asdict(outcome.model),
            "predictions": [dataclasses.asdict(prediction) for prediction in outcome.predictions],
        }

    return {"photos": [row(photo, outcome) for photo, outcome in zip(photos, outcomes, strict=True)]}


def sentence(photo: Path, answer: Answer) -> str:
    """An answer for people."""
    best = ", ".join(f"{row.breed} {row.probability:.0%}" for row in answer.predictions[:3])
    return f"{printable(str(photo))}: {best} ({answer.model.name} version {answer.model.version})"


def reason(photo: Path, error: PhotoError | OSError | ClientError) -> str:
    """Why there is no answer, for people; it begins with the name of the photo, if the photo is the cause."""
    return f"{printable(str(photo))}: {error.strerror}" if isinstance(error, OSError) else str(error)


def reasons(photos: Sequence[Path], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Why photos have no answer: a sentence for each photo that is the cause, and one for a server that is."""
    told = set()
    for photo, outcome in zip(photos, outcomes, strict=True):
        if not isinstance(outcome, Answer) and id(outcome) not in told:
            told.add(id(outcome))
            yield reason(photo, outcome)
            without = [printable(str(other)) for other, why in zip(photos, outcomes, strict=True) if why is outcome]
            if len(without) > 1:
                yield f"no answer for {', '.join(without)}"


def _ask(client: Client, photos: Sequence[Path]) -> list[Outcome]:
    # One at a time: servers limit the bytes of a request.
    outcomes: list[Outcome] = []
    with closing(client):
        for photo in photos:
            try:
                outcomes.append(client.predict(photo))
            except (PhotoError, OSError, BadAnswer) as error:
                outcomes.append(error)
            except ClientError as error:  # the server would say the same of the others
                return outcomes + [error] * (len(photos) - len(outcomes))
    return outcomes
