"""Commands that choose the version for clients: promote, rollback, canary; on this machine or in a cluster."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import Exit, ProfileOption, SetOption, VersionArgument, WorkdirOption, fail, read_settings
from pipeline.settings import Settings
from serving.names import counted
from serving.registry import Registry, RegistryError
from serving.rollout.limits import CANARY_SHARE, CanaryCriteria, RolloutLimits

if TYPE_CHECKING:  # gRPC and the Kubernetes client are slow to import, and `--help` does not need them
    from serving.rollout.controller import RolloutController, RolloutResult
    from serving.rollout.fleet import Fleet

NamespaceOption = Annotated[
    str | None, typer.Option(help="Kubernetes namespace of the servers. Without it, the servers of this machine.")
]
ContextOption = Annotated[str | None, typer.Option(help="Context of kubectl's configuration; used with --namespace.")]

app = typer.Typer()


@app.command()
def promote(
    version: VersionArgument,
    canary: Annotated[
        bool,
        typer.Option("--canary", help="Start it as a canary with a share of the requests; see `catbreeds canary`."),
    ] = False,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the requests for the canary.")] = CANARY_SHARE,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Make a pushed version the stable one. Clients get it as soon as every server has loaded it."""
    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as controller:
        if canary:
            golden_count, result = controller.start_canary(version, share)
            print(f"version {version} is canary and receives {share:.0%} of the gateways' requests")
            print(f"{counted(golden_count, 'golden request')} passed" if golden_count else "it has no golden requests")
        else:
            previous, result = controller.promote(version)
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
    """Make the previous stable version stable again."""
    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as controller:
        previous, stable, result = controller.rollback()
    print(f"version {stable} is stable again and replaces version {previous}")
    _print_result(result)


@app.command()
def canary(
    wait: Annotated[float, typer.Option(min=0, help="Longest time to collect metrics, in seconds.")] = 300,
    promote: Annotated[bool, typer.Option("--promote", help="Make the canary stable if it is not worse.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the canary without a comparison.")] = False,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Compare the canary with the stable version by golden requests and gateway metrics. Stop it if it is worse.

    Exit code: 0 if it is not worse, 3 if it was stopped, 1 if there were too few requests to decide.
    """
    from serving.rollout.canary_analysis import Outcome

    config = read_settings(profile, settings, workdir=workdir)
    with _rollout_controller(config, namespace, context) as controller:
        if stop:
            stopped, result = controller.stop_canary("stopped by hand")
            print(f"version {stopped}: canary stopped" if stopped else "no version was canary")
            _print_result(result, "updated")
            return
        version, analysis = controller.check_canary(wait, CanaryCriteria(**config.rollout.rules()))
        print(f"version {version}: {analysis.reason}")
        if analysis.outcome is not Outcome.PASS:
            raise typer.Exit(Exit.FAILED)
        if promote:
            previous, result = controller.promote(version)
            _print_promotion(version, previous)
            _print_result(result)


@contextlib.contextmanager
def _rollout_controller(config: Settings, namespace: str | None, context: str | None) -> "Iterator[RolloutController]":
    """Creates the controller for the fleet that the options select; errors end the command with a message."""
    from serving.rollout.controller import RolloutController
    from serving.rollout.errors import CanaryStopped, RolloutError
    from serving.rollout.fleet import FleetError

    if context and not namespace:
        raise fail("--context needs --namespace")
    registry = Registry(config.registry)
    # CI systems cancel a job with SIGTERM. The exception runs the context managers, which end port forwarding.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with _fleet(config, namespace, context) as fleet:
            yield RolloutController(registry, fleet, RolloutLimits(**config.rollout.limits()))
    except RegistryError as error:
        raise fail(error) from None
    except CanaryStopped as error:
        raise fail(error, Exit.REFUSED) from None
    except (RolloutError, FleetError) as error:
        raise fail(error, Exit.FAILED) from None


def _exit_on_signal(number: int, _: object) -> None:
    raise fail("interrupted; run the same command again to finish", 128 + number)


@contextlib.contextmanager
def _fleet(config: Settings, namespace: str | None, context: str | None) -> "Iterator[Fleet]":
    if namespace is None:
        from serving.rollout.local_fleet import LocalFleet

        yield LocalFleet(Path(config.workdir), config.registry)
        return
    from serving.rollout.kubernetes_fleet import KubernetesFleet

    with KubernetesFleet(namespace, config.model_name, config.rollout.models, context) as fleet:
        yield fleet


def _print_promotion(version: int, previous: int | None) -> None:
    note = "; it was stable before" if previous == version else f" and replaces version {previous}"
    print(f"version {version} is stable{note}")


def _print_result(result: "RolloutResult", action: str = "loaded on") -> None:
    print(f"{action} {counted(len(result.servers), 'server')}" if result.servers else "no server is running")
    for name in result.starting:
        print(f"{name} is still starting; run the same command again when it is ready")
    for version in result.removed:
        print(f"removed version {version} from the registry")
