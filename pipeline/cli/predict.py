"""The command `predict`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import (
    ExitCode,
    JsonOption,
    ProfileOption,
    SetOption,
    WorkdirOption,
    fail,
    os_error_message,
    read_settings,
)
from pipeline.console import noise_to, print_error
from pipeline.settings import Settings
from serving.names import printable
from serving.registry import Registry, RegistryError

if TYPE_CHECKING:  # the clients are slow to import; `--help` works without them
    from serving.client import Answer, Client, ClientError
    from serving.photo_normalization import PhotoError

    # Result for one photo: its prediction, or the reason for its absence.
    Result = Answer | PhotoError | OSError | ClientError

app = typer.Typer()


@app.command()
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos to classify.", show_default=False)],
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="Send requests to this gateway.")] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Send gRPC requests to this model server.")
    ] = None,
    rest: Annotated[str | None, typer.Option(metavar="URL", help="Send REST requests to this model server.")] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="Label of the version to query; used with --grpc or --rest.", show_default="the newest loaded version"
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="CATBREEDS_CLIENT_API_KEY", help="API key for the gateway; used with --gateway."),
    ] = None,
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the breeds of photos, with a running server or with the stable version of a workdir.

    A photo that cannot be used does not affect the others.

    Exit code: 0 every photo has a prediction, 1 a server failed, 2 invalid usage or an unusable photo.
    """
    sources = {"--gateway": gateway, "--grpc": grpc, "--rest": rest, "--workdir": workdir}
    if len(given := [option for option, value in sources.items() if value is not None]) > 1:
        raise fail(f"{' and '.join(given)} exclude each other; pass one of {', '.join(sources)}")
    for option, value in {**sources, "--label": label}.items():
        if value is not None and not value.strip():
            raise fail(f"{option}: the value is empty; pass a value or omit {option}")
    if label and not (grpc or rest):
        raise fail("--label requires --grpc or --rest")
    config = read_settings(profile, settings, workdir=workdir)
    from serving.client import Answer, ClientError, InvalidKey, ModelChoice, WrongAddress

    model = ModelChoice(config.model_name, label=label)
    try:
        if gateway:
            from serving.client.gateway import GatewayClient

            results = _predict_with_client(GatewayClient(gateway, api_key), photos)
        elif grpc:
            from serving.client.grpc import GrpcClient

            results = _predict_with_client(GrpcClient(grpc, model), photos)
        elif rest:
            from serving.client.rest import RestClient

            results = _predict_with_client(RestClient(rest, model), photos)
        else:
            results = _predict_with_workdir(config, photos)
    except (RegistryError, WrongAddress, InvalidKey) as error:
        raise fail(error) from None
    except ClientError as error:
        raise fail(error, ExitCode.FAILURE) from None
    except OSError as error:
        raise fail(os_error_message(error)) from None
    answers = [(photo, result) for photo, result in zip(photos, results, strict=True) if isinstance(result, Answer)]
    if answers and as_json:
        print(json.dumps(_to_json(photos, results), indent=1))
    elif answers:
        print("\n".join(_format_answer(photo, answer) for photo, answer in answers))
    for message in _error_messages(photos, results):
        print_error(f"catbreeds: {message}")
    if len(answers) < len(photos):
        failed = any(isinstance(result, ClientError) and not isinstance(result, WrongAddress) for result in results)
        raise typer.Exit(ExitCode.FAILURE if failed else ExitCode.INVALID_INPUT)


def _predict_with_client(client: "Client", photos: Sequence[Path]) -> "list[Result]":
    from serving.client import BadResponse, ClientError
    from serving.photo_normalization import PhotoError

    # One photo per request: servers limit the size of a request.
    results: list[Result] = []
    with closing(client):
        for photo in photos:
            try:
                results.append(client.predict(photo))
            except (PhotoError, OSError, BadResponse) as error:
                results.append(error)
            except ClientError as error:  # requests for the other photos would fail in the same way
                return results + [error] * (len(photos) - len(results))
    return results


def _predict_with_workdir(config: Settings, photos: Sequence[Path]) -> "list[Result]":
    """Predict with the stable version of the workdir, which is loaded in this process.

    Raises:
        RegistryError: If no version is stable, or it is damaged.
    """
    registry = Registry(config.registry)
    version = registry.stable()
    if version is None:
        raise RegistryError(f"{registry.base}: no version is stable; `catbreeds run` trains and pushes one")
    registry.record(version)
    contents = [_read_photo(photo) for photo in photos]
    if not any(isinstance(content, bytes) for content in contents):
        return contents
    with noise_to(Path(config.workdir) / "logs" / "predict.log"):
        from serving.client import Model
        from serving.client.answers import answer_of
        from serving.local.saved_model_process import LoadedModel

        rows = LoadedModel(str(registry.path(version))).predict([c for c in contents if isinstance(c, bytes)])
    model = Model(config.model_name, version)
    answers = iter(
        [
            answer_of(model, row["breeds"], row["probabilities"], row.get("in_set"), row.get("unfamiliar"))
            for row in rows
        ]
    )
    return [next(answers) if isinstance(content, bytes) else content for content in contents]


def _read_photo(photo: Path) -> "bytes | PhotoError | OSError":
    from serving.client.base import normalize_photos
    from serving.photo_normalization import PhotoError

    try:
        return normalize_photos([photo])[0]
    except (PhotoError, OSError) as error:
        return error


def _to_json(photos: Sequence[Path], results: "Sequence[Result]") -> dict[str, Any]:
    """Return the results as JSON. Each has its model, because the served version may change between two photos."""
    from serving.client import Answer

    def row(photo: Path, result: "Result") -> dict[str, Any]:
        if not isinstance(result, Answer):
            return {"photo": printable(str(photo)), "error": _error_message(photo, result)}
        return {
            "photo": printable(str(photo)),
            "model": asdict(result.model),
            "predictions": [asdict(prediction) for prediction in result.predictions],
            "prediction_set": result.prediction_set,
            "unfamiliar": result.unfamiliar,
        }

    return {"photos": [row(photo, result) for photo, result in zip(photos, results, strict=True)]}


def _format_answer(photo: Path, answer: "Answer") -> str:
    from serving.client.wording import uncertainty_note

    best = ", ".join(f"{row.breed} {row.probability:.0%}" for row in answer.predictions[:3])
    note = uncertainty_note(answer)
    return f"{printable(str(photo))}: {best}{note and f'; {note}'} ({answer.model.name} version {answer.model.version})"


def _error_message(photo: Path, error: "PhotoError | OSError | ClientError") -> str:
    """Return the reason why there is no prediction; it begins with the path of the photo if the photo is the cause."""
    return f"{printable(str(photo))}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _error_messages(photos: Sequence[Path], results: "Sequence[Result]") -> Iterator[str]:
    """Yield one message per unusable photo, and one for a failed server with the photos it did not predict."""
    from serving.client import Answer

    reported = set()
    for photo, result in zip(photos, results, strict=True):
        if not isinstance(result, Answer) and id(result) not in reported:
            reported.add(id(result))
            yield _error_message(photo, result)
            affected = [printable(str(other)) for other, error in zip(photos, results, strict=True) if error is result]
            if len(affected) > 1:
                yield f"no prediction for {', '.join(affected)}"
