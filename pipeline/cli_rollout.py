"""The commands that decide which version users get: on this machine, or in a cluster."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_common import Exit, ProfileOption, SetOption, VersionArgument, WorkdirOption, fail, read_settings
from pipeline.settings import Settings
from serving.registry import Registry, RegistryError
from serving.rollout.fleet import Fleet, FleetError
from serving.rollout.laptop import Laptop
from serving.rollout.rollout import Limits, Rollout, RolloutError, Told

NamespaceOption = Annotated[
    str | None, typer.Option(help="Of the cluster whose servers are meant, instead of those of this machine.")
]
ContextOption = Annotated[str | None, typer.Option(help="Of kubectl's configuration; with --namespace.")]

app = typer.Typer()


@app.command()
def promote(
    version: VersionArgument,
    workdir: WorkdirOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Make a pushed version the one in service, for users as soon as every server has loaded it."""
    config = read_settings(profile, settings, workdir=workdir)
    with _driving(config, namespace, context) as rollout:
        before, told = rollout.promote(version)
    print(f"version {version} is stable{'; it was already' if before == version else f', before it version {before}'}")
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


@contextlib.contextmanager
def _driving(config: Settings, namespace: str | None, context: str | None) -> Iterator[Rollout]:
    """Rollout of the place that the options mean; what goes wrong ends the command with a sentence."""
    if context and not namespace:
        raise fail("--context needs --namespace")
    registry = Registry(config.registry)
    try:
        with _fleet(config, namespace, context) as fleet:
            yield Rollout(registry, fleet, Limits(**config.rollout.limits()))
    except RegistryError as error:
        raise fail(error) from None
    except (RolloutError, FleetError) as error:
        raise fail(error, Exit.FAILED) from None


@contextlib.contextmanager
def _fleet(config: Settings, namespace: str | None, context: str | None) -> Iterator[Fleet]:
    if namespace is None:
        yield Laptop(Path(config.workdir), config.registry)
        return
    from serving.rollout.cluster import Cluster  # the client of Kubernetes takes long to import

    with Cluster(namespace, config.model_name, context) as cluster:
        yield cluster


def _show(told: Told) -> None:
    servers = len(told.servers)
    print(f"{servers} {'server serves' if servers == 1 else 'servers serve'} it" if servers else "no server is running")
    for name in told.starting:
        print(f"{name} is still starting: run the same command again when it is ready")
    for version in told.removed:
        print(f"version {version} was removed from the registry")
