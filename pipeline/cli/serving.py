"""The commands that serve the model in service on this machine, and that ask a served one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import Exit, JsonOption, ProfileOption, SetOption, WorkdirOption, fail, read_settings, told
from serving.registry import RegistryError


def _port(help: str) -> typer.models.OptionInfo:
    return typer.Option(min=1, max=65535, help=help)


def _host(text: str) -> str:
    """The IP address that servers listen on.

    Raises:
        BadParameter: it is none of this machine's.
    """
    from serving.addresses import resolve

    try:
        return resolve(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(f"{text!r}: {reason}; say an IP address of this machine, or 0.0.0.0 for all") from None


GrpcPortOption = Annotated[int, _port("Of the model server's gRPC.")]
RestPortOption = Annotated[int, _port("Of the model server's REST.")]

app = typer.Typer()


@app.command()
def serve(
    workdir: WorkdirOption = None,
    grpc_port: GrpcPortOption = 8500,
    rest_port: RestPortOption = 8501,
    host: Annotated[
        str,
        typer.Option(parser=_host, metavar="HOST", help="Address to listen on; 0.0.0.0 lets other machines in."),
    ] = "127.0.0.1",
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Only write its configuration, for a server in a container.")
    ] = False,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Serve the model in service over TensorFlow Serving's API, until Ctrl-C.

    TensorFlow Serving itself does it where `tensorflow_model_server` is on PATH, else a server of our own. It serves
    the versions that have labels; `catbreeds promote` and `rollback` move what it answers.
    """
    from serving.local import up

    config = read_settings(profile, settings, workdir=workdir)
    ports = up.Ports(grpc_port, rest_port, host)
    if no_server:
        _serving(lambda: up.configure(config, ports), {})
    else:
        places = {"--grpc-port": (host, grpc_port), "--rest-port": (host, rest_port)}
        _serving(lambda: up.serve(config, ports), places)


@app.command()
def up(
    workdir: WorkdirOption = None,
    page_port: Annotated[int, _port("Of the page.")] = 8080,
    gateway_port: Annotated[int, _port("Of the gateway.")] = 8000,
    grpc_port: GrpcPortOption = 8500,
    rest_port: RestPortOption = 8501,
    host: Annotated[
        str,
        typer.Option(
            parser=_host,
            metavar="HOST",
            help="Address that page and gateway listen on; 0.0.0.0 lets other machines in.",
        ),
    ] = "127.0.0.1",
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of photos to try on the page.",
            show_default="drawn, if the model knows the imaginary breeds",
        ),
    ] = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Start model server, gateway and web page for the model in service, until Ctrl-C.

    Each writes a log below WORKDIR/logs. If one of them ends, all end. They follow when `stable` moves.
    """
    from serving.local import up

    config = read_settings(profile, settings, workdir=workdir)
    ports = up.Ports(grpc_port, rest_port)
    places = {
        "--page-port": (host, page_port),
        "--gateway-port": (host, gateway_port),
        "--grpc-port": (ports.host, grpc_port),
        "--rest-port": (ports.host, rest_port),
    }
    _serving(lambda: up.up(config, ports, host, gateway_port, page_port, samples), places)


@app.command()
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos.", show_default=False)],
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="Ask a gateway.")] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask a model server by gRPC.")] = None,
    rest: Annotated[str | None, typer.Option(metavar="URL", help="Ask a model server by REST.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Of the version, with --grpc or --rest.", show_default="the newest that serves")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="CATBREEDS_CLIENT_API_KEY", help="With --gateway, where it wants one.")
    ] = None,
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for the breed of photos: the model in service in a workdir, or one that is served.

    Photos that can be used are answered, whatever the others are.

    Exit code: 0 all answered, 2 wrong usage or a photo that cannot be used, 1 a server gave no answer.
    """
    ways = {"--gateway": gateway, "--grpc": grpc, "--rest": rest, "--workdir": workdir}
    if len(given := [flag for flag, value in ways.items() if value is not None]) > 1:
        raise fail(f"{' and '.join(given)}: say one of {', '.join(ways)}")
    for flag, value in {**ways, "--label": label}.items():
        if value is not None and not value.strip():
            raise fail(f"{flag}: the value is empty; give one, or leave {flag} out")
    if label and not (grpc or rest):
        raise fail("--label needs --grpc or --rest")
    config = read_settings(profile, settings, workdir=workdir)
    from pipeline.cli import predict
    from serving.client import Answer, ClientError, ModelChoice, WrongAddress, WrongKey

    model = ModelChoice(config.model_name, label=label)
    try:
        if gateway:
            outcomes = predict.ask_gateway(gateway, photos, api_key)
        elif grpc:
            outcomes = predict.ask_grpc(grpc, photos, model)
        elif rest:
            outcomes = predict.ask_rest(rest, photos, model)
        else:
            outcomes = predict.ask_workdir(config, photos)
    except (RegistryError, WrongAddress, WrongKey) as error:
        raise fail(error) from None
    except ClientError as error:
        raise fail(error, Exit.FAILED) from None
    except OSError as error:
        raise fail(told(error)) from None
    answers = [(photo, found) for photo, found in zip(photos, outcomes, strict=True) if isinstance(found, Answer)]
    if answers and as_json:
        print(json.dumps(predict.document(photos, outcomes), indent=1))
    elif answers:
        print("\n".join(predict.sentence(photo, answer) for photo, answer in answers))
    failed = any(isinstance(outcome, ClientError) and not isinstance(outcome, WrongAddress) for outcome in outcomes)
    for reason in predict.reasons(photos, outcomes):
        fail(reason)
    if len(answers) < len(photos):
        raise typer.Exit(Exit.FAILED if failed else Exit.WRONG_INPUT)


def _serving(work: Callable[[], None], places: dict[str, tuple[str, int]]) -> None:
    """Does `work` if the servers can listen there, see `refuse_busy`; failures end the command with a sentence."""
    from serving.local.processes import ProgramError
    from serving.local.up import PortError, refuse_busy
    from serving.rollout.errors import RolloutError
    from serving.rollout.fleet import FleetError

    try:
        refuse_busy(places)
        work()
    except (PortError, RegistryError) as error:
        raise fail(error) from None
    except OSError as error:
        raise fail(told(error)) from None
    except (ProgramError, FleetError, RolloutError) as error:
        raise fail(error, Exit.FAILED) from None
    print("Stopped.")
