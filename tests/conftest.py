"""Runs that many tests look at are made once a session, through the command line as a user would.

Tests go on in two processes at a time (`make test`): those of a run that is shared in one of them, so that it is made
but once and none changes what another reads; else those of a file. The longest begin, so that no process is left alone
with them in the end.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import debian as debian_12
from tests.running import SMALL, Run, run_pipeline

LONGEST = ("debian", "test_compiled_runs", "small", "demo", "test_release")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def group(item: pytest.Item) -> str:
        return min({"debian", "demo", "small"} & set(item.fixturenames), default=item.path.stem)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: LONGEST.index(group(item)) if group(item) in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def restore_environment() -> Iterator[None]:
    """Commands that a test calls in its own process set variables, which other tests must not find."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def draw_photos(tmp_path_factory) -> Callable[..., Path]:
    """Writes photos of imaginary breeds to a folder of its own."""
    from pipeline.datasets.sample_data import write_sample_data

    def draw(**options) -> Path:
        folder = tmp_path_factory.mktemp("photos")
        write_sample_data(folder, **options)
        return folder

    return draw


@pytest.fixture(scope="session")
def demo(tmp_path_factory, draw_photos) -> Run:
    """The run of `make demo`: three backbones, one pushed model."""
    run = run_pipeline(draw_photos(), tmp_path_factory.mktemp("demo"))
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory, draw_photos) -> Run:
    """A run of one backbone with a tiny search; tests that add runs do so in a copy of its workdir."""
    run = run_pipeline(draw_photos(breeds=3, photos=25), tmp_path_factory.mktemp("small"), *SMALL)
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    return run


@pytest.fixture(scope="session")
def debian(tmp_path_factory) -> Iterator[Path]:
    """Root of a bare Debian 12 with the packages that the README asks for; tests change only copies of it."""
    if reason := debian_12.why_not():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("debian") / "root"
    try:
        debian_12.install(root)
        yield root
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


@pytest.fixture(scope="session")
def copy_small(small, tmp_path_factory) -> Callable[[], Path]:
    """Copies the workdir of `small`: a run in the copy finds everything in the cache."""

    def copy() -> Path:
        workdir = tmp_path_factory.mktemp("copy") / "work"
        shutil.copytree(small.workdir, workdir)
        return workdir

    return copy
