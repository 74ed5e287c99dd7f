"""The commands `serve` and `up`, which serve the stable version on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import (
    ExitCode,
    ProfileOption,
    SetOption,
    WorkdirOption,
    command_with_renamed_options,
    fail,
    os_error_message,
    read_settings,
)
from serving.registry import RegistryError


def _port(help: str) -> typer.models.OptionInfo:
    return typer.Option(min=1, max=65535, help=help)


def _parse_host(text: str) -> str:
    """Returns the IP address to listen on.

    Raises:
        BadParameter: If it is not an address of this machine.
    """
    from serving.addresses import resolve

    try:
        return resolve(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(
            f"{text!r}: {reason}; use an IP address of this machine, or 0.0.0.0 for all of them"
        ) from None


GrpcPortOption = Annotated[int, _port("gRPC port of the model server.")]
RestPortOption = Annotated[int, _port("REST port of the model server.")]

app = typer.Typer()


@app.command(cls=command_with_renamed_options({"--no-server": "--config-only"}))
def serve(
    workdir: WorkdirOption = None,
    grpc_port: GrpcPortOption = 8500,
    rest_port: RestPortOption = 8501,
    host: Annotated[
        str,
        typer.Option(
            parser=_parse_host,
            metavar="HOST",
            help="Address to listen on; 0.0.0.0 accepts connections from other machines.",
        ),
    ] = "127.0.0.1",
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only",
            help="Start no server; only write the configuration, for a server in a container.",
        ),
    ] = False,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Serve the stable version over the TensorFlow Serving API until Ctrl-C.

    Starts TensorFlow Serving if `tensorflow_model_server` is on PATH, otherwise the model server of this package.
    Every version with a label is loaded; the server follows `catbreeds promote` and `catbreeds rollback`.
    """
    from serving.local import up

    config = read_settings(profile, settings, workdir=workdir)
    ports = up.Ports(grpc_port, rest_port, host)
    if config_only:
        _run_until_stopped(lambda: up.configure(config, ports), {})
    else:
        addresses = {"--grpc-port": (host, grpc_port), "--rest-port": (host, rest_port)}
        _run_until_stopped(lambda: up.serve(config, ports), addresses)


@app.command()
def up(
    workdir: WorkdirOption = None,
    page_port: Annotated[int, _port("Port of the web page.")] = 8080,
    gateway_port: Annotated[int, _port("Port of the gateway.")] = 8000,
    grpc_port: GrpcPortOption = 8500,
    rest_port: RestPortOption = 8501,
    host: Annotated[
        str,
        typer.Option(
            parser=_parse_host,
            metavar="HOST",
            help="Address that the page and the gateway listen on; 0.0.0.0 accepts connections from other machines.",
        ),
    ] = "127.0.0.1",
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of example photos to offer on the page.",
            show_default="generated, if the model was trained on synthetic breeds",
        ),
    ] = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Start model server, gateway and web page for the stable version, and run them until Ctrl-C.

    Each process logs to a file in WORKDIR/logs. If one exits, the others are stopped.
    They switch to another version as soon as it is stable.
    """
    from serving.local import up

    config = read_settings(profile, settings, workdir=workdir)
    ports = up.Ports(grpc_port, rest_port)
    addresses = {
        "--page-port": (host, page_port),
        "--gateway-port": (host, gateway_port),
        "--grpc-port": (ports.host, grpc_port),
        "--rest-port": (ports.host, rest_port),
    }
    _run_until_stopped(lambda: up.up(config, ports, host, gateway_port, page_port, samples), addresses)


def _run_until_stopped(run: Callable[[], None], addresses: dict[str, tuple[str, int]]) -> None:
    """Calls `run` if the servers can listen on their addresses; ends the command with a message if it fails.

    Args:
        run: Function that runs the servers until this process is stopped.
        addresses: Option that sets the port -> IP address and port to listen on.
    """
    from serving.local.processes import ProgramError
    from serving.local.up import PortError, refuse_busy
    from serving.rollout.errors import RolloutError
    from serving.rollout.fleet import FleetError

    try:
        refuse_busy(addresses)
        run()
    except (PortError, RegistryError) as error:
        raise fail(error) from None
    except OSError as error:
        raise fail(os_error_message(error)) from None
    except (ProgramError, FleetError, RolloutError) as error:
        raise fail(error, ExitCode.FAILURE) from None
    print("Stopped.")
