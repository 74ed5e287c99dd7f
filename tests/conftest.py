"""Session fixtures for runs that many tests read. The runs use the command line, as a user does.

`make test` runs the tests in two processes. All tests that share a run execute in the same process, so that the run
happens once; all other tests of a file execute in the same process. The longest groups start first, so that both
processes finish at about the same time.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import debian as debian_12
from tests.running import SMALL, Run, catbreeds, run_pipeline

LONGEST = ("debian", "test_compiled_runs", "small", "demo", "feedback_run", "test_release")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def group(item: pytest.Item) -> str:
        return min({"debian", "demo", "feedback_run", "small"} & set(item.fixturenames), default=item.path.stem)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: LONGEST.index(group(item)) if group(item) in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def restore_environment() -> Iterator[None]:
    """Restore the environment variables that commands change when a test calls them in its own process."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def generate_photos(tmp_path_factory) -> Callable[..., Path]:
    """Function that writes photos of synthetic breeds to a new folder; options as for `write_sample_data`."""
    from pipeline.datasets.sample_data import write_sample_data

    def generate(**options) -> Path:
        folder = tmp_path_factory.mktemp("photos")
        write_sample_data(folder, **options)
        return folder

    return generate


@pytest.fixture(scope="session")
def demo(tmp_path_factory, generate_photos) -> Run:
    """The run of `make demo`: three backbones and one pushed model."""
    run = run_pipeline(generate_photos(), tmp_path_factory.mktemp("demo"))
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory, generate_photos) -> Run:
    """A run of one backbone with a tiny search. Tests that add runs use `copy_small`."""
    run = run_pipeline(generate_photos(breeds=3, photos=25), tmp_path_factory.mktemp("small"), *SMALL)
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    return run


@pytest.fixture(scope="session")
def feedback_run(tmp_path_factory) -> Run:
    """The first run of notebook 5, which changes this workdir."""
    workdir = tmp_path_factory.mktemp("feedback")
    photos = workdir / "photos"
    catbreeds("sample-data", photos, "--photos", 60)
    process = catbreeds("run", "--profile", "feedback", "--data", photos, "--workdir", workdir)
    assert process.returncode == 0, process.stdout + process.stderr
    return Run(workdir, photos, process)


@pytest.fixture(scope="session")
def feedback_copy(feedback_run, tmp_path_factory) -> Path:
    """A copy of the workdir of `feedback_run` before any test changes it."""
    return shutil.copytree(feedback_run.workdir, tmp_path_factory.mktemp("story") / "work")


@pytest.fixture(scope="session")
def debian(tmp_path_factory) -> Iterator[Path]:
    """Root of a minimal Debian 12 with the packages that the README lists. Tests only change copies of it."""
    if reason := debian_12.reason_to_skip():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("debian") / "root"
    try:
        debian_12.install(root)
        yield root
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


@pytest.fixture(scope="session")
def copy_small(small, tmp_path_factory) -> Callable[[], Path]:
    """Function that copies the workdir of `small`; a run in the copy finds all results in the cache."""

    def copy() -> Path:
        workdir = tmp_path_factory.mktemp("copy") / "work"
        shutil.copytree(small.workdir, workdir)
        return workdir

    return copy
