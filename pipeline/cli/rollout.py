"""The commands that decide which version users get: on this machine, or in a cluster."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import Exit, ProfileOption, SetOption, VersionArgument, WorkdirOption, fail, read_settings
from pipeline.settings import Settings
from serving.registry import Registry, RegistryError

if TYPE_CHECKING:  # gRPC and the client of Kubernetes take long to import; `--help` does without
    from serving.rollout.controller import RolloutController, Told
    from serving.rollout.fleet import Fleet

NamespaceOption = Annotated[
    str | None, typer.Option(help="Of the cluster whose servers are meant, instead of those of this machine.")
]
ContextOption = Annotated[str | None, typer.Option(help="Of kubectl's configuration; with --namespace.")]

app = typer.Typer()


@app.command()
def promote(
    version: VersionArgument,
    canary: Annotated[
        bool, typer.Option("--canary", help="Give it a share of the requests first, see `catbreeds canary`.")
    ] = False,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the requests, for the canary.")] = 0.1,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Make a pushed version the one in service, for users as soon as every server has loaded it."""
    config = read_settings(profile, settings, workdir=workdir)
    with _driving(config, namespace, context) as rollout:
        if canary:
            golden, told = rollout.start_canary(version, share)
            print(f"version {version} is canary and gets {share:.0%} of the gateways' requests")
            print(f"{golden} golden requests answered as measured" if golden else "it has no golden requests")
        else:
            before, told = rollout.promote(version)
            was = "; it was already" if before == version else f", before it version {before}"
            print(f"version {version} is stable{was}")
    _show(told)


@app.command()
def rollback(
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Put the version in service that was there before the last promotion."""
    config = read_settings(profile, settings, workdir=workdir)
    with _driving(config, namespace, context) as rollout:
        current, target, told = rollout.rollback()
    print(f"version {target} is stable again, instead of version {current}")
    _show(told)


@app.command()
def canary(
    wait: Annotated[float, typer.Option(min=0, help="Seconds to look at the traffic, at most.")] = 300,
    promote: Annotated[bool, typer.Option("--promote", help="Make it stable if it is not worse.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Take all requests back from it, whatever it does.")] = False,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Compare the canary with stable, by golden requests and by the traffic from now on. A canary that is worse stops.

    Exit code: 0 it is not worse, 3 it was stopped, 1 there was too little traffic to tell.
    """
    from serving.rollout.canary_analysis import Outcome, Rules

    config = read_settings(profile, settings, workdir=workdir)
    with _driving(config, namespace, context) as rollout:
        if stop:
            version, told = rollout.stop_canary("stopped by hand")
            print(f"version {version} is not canary any more" if version else "no version was canary")
            _show(told)
            return
        version, verdict = rollout.check_canary(wait, Rules(**config.rollout.rules()))
        print(f"version {version}: {verdict.reason}")
        if verdict.outcome is not Outcome.GOOD:
            raise typer.Exit(Exit.FAILED)
        if promote:
            before, told = rollout.promote(version)
            print(f"version {version} is stable, before it version {before}")
            _show(told)


@contextlib.contextmanager
def _driving(config: Settings, namespace: str | None, context: str | None) -> "Iterator[RolloutController]":
    """RolloutController of the place that the options mean; what goes wrong ends the command with a sentence."""
    from serving.rollout.controller import CanaryStopped, Limits, RolloutController, RolloutError
    from serving.rollout.fleet import FleetError

    if context and not namespace:
        raise fail("--context needs --namespace")
    registry = Registry(config.registry)
    # Unwinds, and so closes forwarded ports; CI systems cancel a job by SIGTERM.
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _fleet(config, namespace, context) as fleet:
            yield RolloutController(registry, fleet, Limits(**config.rollout.limits()))
    except RegistryError as error:
        raise fail(error) from None
    except CanaryStopped as error:
        raise fail(error, Exit.REFUSED) from None
    except (RolloutError, FleetError) as error:
        raise fail(error, Exit.FAILED) from None


def _stop(number: int, _: object) -> None:
    raise fail("stopped; the same command again finishes", 128 + number)


@contextlib.contextmanager
def _fleet(config: Settings, namespace: str | None, context: str | None) -> "Iterator[Fleet]":
    if namespace is None:
        from serving.rollout.local_fleet import LocalFleet

        yield LocalFleet(Path(config.workdir), config.registry)
        return
    from serving.rollout.kubernetes_fleet import KubernetesFleet

    with KubernetesFleet(namespace, config.model_name, config.rollout.models_dir, context) as cluster:
        yield cluster


def _show(told: "Told") -> None:
    servers = len(told.servers)
    print(f"{servers} {'server serves' if servers == 1 else 'servers serve'} it" if servers else "no server is running")
    for name in told.starting:
        print(f"{name} is still starting: run the same command again when it is ready")
    for version in told.removed:
        print(f"version {version} was removed from the registry")
