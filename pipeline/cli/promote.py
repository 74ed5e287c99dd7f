"""The commands `promote`, `rollback` and `canary`, which change the served version on this machine or in a cluster."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import (
    ExitCode,
    ProfileOption,
    SetOption,
    VersionArgument,
    WorkdirOption,
    command_with_renamed_options,
    fail,
    read_settings,
)
from pipeline.settings import Settings
from serving.names import counted
from serving.registry import Registry, RegistryError
from serving.rollout.limits import CANARY_SHARE, CanaryCriteria, RolloutLimits

if TYPE_CHECKING:  # gRPC and the Kubernetes client are slow to import; `--help` works without them
    from serving.rollout.controller import RolloutController, RolloutResult
    from serving.rollout.fleet import Fleet

NamespaceOption = Annotated[
    str | None,
    typer.Option(help="Namespace of the model servers in a cluster.", show_default="the servers on this machine"),
]
ContextOption = Annotated[
    str | None,
    typer.Option(help="kubectl context of the cluster; requires --namespace.", show_default="the current context"),
]

app = typer.Typer()


@app.command()
def promote(
    version: VersionArgument,
    canary: Annotated[
        bool,
        typer.Option("--canary", help="Make it the canary, with a share of the requests, instead of stable."),
    ] = False,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests for the canary, 0 to 1.")
    ] = CANARY_SHARE,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Make a pushed version stable. Clients get it as soon as every server has loaded it."""
    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as rollout:
        if canary:
            golden_requests, result = rollout.start_canary(version, share)
            print(f"version {version} is the canary and gets {share:.0%} of the gateways' requests")
            if golden_requests:
                print(f"{counted(golden_requests, 'golden request')} returned the expected predictions")
            else:
                print("the version has no golden requests")
        else:
            previous, result = rollout.promote(version)
            _print_promotion(version, previous)
    _print_result(result)


@app.command()
def rollback(
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Restore the version that was stable before the last promotion."""
    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as rollout:
        current, target, result = rollout.rollback()
    print(f"version {target} is stable again (was version {current})")
    _print_result(result)


@app.command(cls=command_with_renamed_options({"--wait": "--timeout"}))
def canary(
    timeout: Annotated[
        float, typer.Option(min=0, help="Maximum number of seconds to measure live traffic before giving up.")
    ] = 300,
    promote: Annotated[bool, typer.Option("--promote", help="Make the canary stable if it is not worse.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the canary without a comparison; stable gets all requests.")
    ] = False,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Compare the canary with the stable version, and stop it if it is worse.

    The comparison uses golden requests and the live traffic from now on.

    Exit code: 0 the canary is not worse, 1 too little traffic to decide, 3 the canary was stopped.
    """
    from serving.rollout.canary_analysis import Outcome

    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as rollout:
        if stop:
            version, result = rollout.stop_canary("stopped by hand")
            print(f"canary stopped: version {version}" if version else "no canary to stop")
            _print_result(result, "updated")
            return
        version, analysis = rollout.check_canary(timeout, CanaryCriteria(**config.rollout.rules()))
        print(f"version {version}: {analysis.reason}")
        if analysis.outcome is not Outcome.PASS:
            raise typer.Exit(ExitCode.FAILURE)
        if promote:
            previous, result = rollout.promote(version)
            _print_promotion(version, previous)
            _print_result(result)


@contextlib.contextmanager
def _rollout_controller(config: Settings, namespace: str | None, context: str | None) -> "Iterator[RolloutController]":
    """Yield the controller of the cluster or of this machine; end the command with a message if it fails."""
    from serving.rollout.controller import RolloutController
    from serving.rollout.errors import CanaryStopped, RolloutError
    from serving.rollout.fleet import FleetError

    if context and not namespace:
        raise fail("--context requires --namespace")
    registry = Registry(config.registry)
    # CI systems cancel a job with SIGTERM; the exception closes forwarded ports.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with _fleet(config, namespace, context) as fleet:
            yield RolloutController(registry, fleet, RolloutLimits(**config.rollout.limits()))
    except RegistryError as error:
        raise fail(error) from None
    except CanaryStopped as error:
        raise fail(error, ExitCode.REJECTED) from None
    except (RolloutError, FleetError) as error:
        raise fail(error, ExitCode.FAILURE) from None


def _exit_on_signal(number: int, _: object) -> None:
    raise fail("interrupted; rerun the command to finish", 128 + number)


@contextlib.contextmanager
def _fleet(config: Settings, namespace: str | None, context: str | None) -> "Iterator[Fleet]":
    if namespace is None:
        from serving.rollout.local_fleet import LocalFleet

        yield LocalFleet(Path(config.workdir), config.registry)
        return
    from serving.rollout.kubernetes_fleet import KubernetesFleet

    with KubernetesFleet(namespace, config.model_name, config.rollout.models_dir, context) as cluster:
        yield cluster


def _print_promotion(version: int, previous: int | None) -> None:
    if previous == version:
        print(f"version {version} was already stable")
    else:
        print(f"version {version} is stable (was {'none' if previous is None else f'version {previous}'})")


def _print_result(result: "RolloutResult", action: str = "loaded on") -> None:
    servers = len(result.servers)
    print(f"{action} {counted(servers, 'server')}" if servers else "no server is running")
    for name in result.starting:
        print(f"{name} is still starting; rerun the command when it is ready")
    for version in result.removed:
        print(f"version {version} was removed from the registry")
