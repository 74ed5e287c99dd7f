"""The commands `serve` and `up`, which serve the stable version on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from pipeline.settings import Settings
from serving.addresses import GATEWAY_PORT, GRPC_PORT, PAGE_PORT, REST_PORT
from serving.registry import Registry, RegistryError

if TYPE_CHECKING:
    from serving.local.up import Deployment

# Number of the first generated sample photo; training photos have smaller numbers.
_FIRST_SAMPLE = 1_000_000


def _port(help: str) -> typer.models.OptionInfo:
    return typer.Option(min=1, max=65535, help=help)


def _parse_host(text: str) -> str:
    """Return the IP address to listen on.

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
    grpc_port: GrpcPortOption = GRPC_PORT,
    rest_port: RestPortOption = REST_PORT,
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
    deployment, ports = _deployment(config), up.Ports(grpc_port, rest_port, host)
    if config_only:
        _run_until_stopped(lambda: up.configure(deployment, ports), {})
    else:
        addresses = {"--grpc-port": (host, grpc_port), "--rest-port": (host, rest_port)}
        _run_until_stopped(lambda: up.serve(deployment, ports), addresses)


@app.command()
def up(
    workdir: WorkdirOption = None,
    page_port: Annotated[int, _port("Port of the web page.")] = PAGE_PORT,
    gateway_port: Annotated[int, _port("Port of the gateway.")] = GATEWAY_PORT,
    grpc_port: GrpcPortOption = GRPC_PORT,
    rest_port: RestPortOption = REST_PORT,
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

    def find_samples(version: int) -> Path | None:
        return samples or _generate_samples(config, version)

    deployment = _deployment(config)
    _run_until_stopped(lambda: up.up(deployment, ports, host, gateway_port, page_port, find_samples), addresses)


def _deployment(config: Settings) -> "Deployment":
    """Registry, workdir and rollout limits of the settings."""
    from serving.local.up import Deployment
    from serving.rollout.limits import RolloutLimits

    return Deployment(config.registry, config.workdir, RolloutLimits(**config.rollout.limits()))


def _generate_samples(config: Settings, version: int) -> Path | None:
    """Generate sample photos for the page; return their folder, or None if the model's breeds are not synthetic."""
    from pipeline.datasets.sample_data import BREEDS, write_sample_data

    breeds = Registry(config.registry).record(version)["breeds"]
    if not 2 <= len(breeds) <= len(BREEDS) or set(breeds) != {breed.name for breed in BREEDS[: len(breeds)]}:
        return None
    folder = Path(config.workdir).resolve() / "serve" / "samples" / str(len(breeds))
    write_sample_data(folder, breeds=len(breeds), photos=1, offset=_FIRST_SAMPLE)
    return folder


def _run_until_stopped(run: Callable[[], None], addresses: dict[str, tuple[str, int]]) -> None:
    """Call `run` if the servers can listen on their addresses; end the command with a message if it fails.

    Args:
        run: Function that runs the servers until this process is stopped.
        addresses: Option that sets the port -> IP address and port to listen on.
    """
    from serving.local.processes import ProgramError
    from serving.local.up import PortError, require_free_ports
    from serving.rollout.errors import RolloutError
    from serving.rollout.fleet import FleetError

    try:
        require_free_ports(addresses)
        run()
    except (PortError, RegistryError) as error:
        raise fail(error) from None
    except OSError as error:
        raise fail(os_error_message(error)) from None
    except (ProgramError, FleetError, RolloutError) as error:
        raise fail(error, ExitCode.FAILURE) from None
    print("Stopped.")
