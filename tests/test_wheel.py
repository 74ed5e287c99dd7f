"""What `pip install .` installs, without the folder that it was built in."""

import ast
import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.settings import ROOT

ROOMS = ("components", "pipeline", "schemas", "serving")
# Nothing that the code reads: for what builds images and generates code.
NOT_INSTALLED = ("Dockerfile", "*.proto", "docker-compose.yaml")
FOR_NOTEBOOKS = "pipeline/results/notebook.py"  # their requirements are in dev.in


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package, without what it requires."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "k8s"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([uv, "pip", "install", *options, "--target", target, source], check=True)
    return target


def files(folder: Path) -> set[str]:
    found = (path for room in ROOMS for path in (folder / room).rglob("*") if path.is_file())
    kept = (path.relative_to(folder) for path in found if not any(map(path.match, NOT_INSTALLED)))
    return {str(path) for path in kept if not {"__pycache__", "k8s"} & set(path.parts)}


def test_every_file_that_the_code_reads_is_installed(installed):
    assert files(installed) == files(ROOT)


def test_the_installed_commands_work_in_an_empty_folder(installed, tmp_path):
    def call(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [installed / "bin" / "catbreeds", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    assert "weights: random" in call("run", "--profile", "demo", "--print-config")
    # It reads the schemas, and imports all that a run does.
    assert call("compile", "--profile", "smoke") == "kfp_specs/smoke.yaml\n"
    compiled = (tmp_path / "kfp_specs" / "smoke.yaml").read_text()
    assert compiled == (ROOT / "kfp_specs" / "smoke.yaml").read_text()


def imported() -> dict[str, str]:
    """Top-level module of others -> one of our files that imports it."""
    found = {}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        if str(path.relative_to(ROOT)) == FOR_NOTEBOOKS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {module.partition(".")[0]: str(path) for module in modules}
    return {module: path for module, path in found.items() if module not in {*sys.stdlib_module_names, *ROOMS}}


def closure(requirements: list[str]) -> set[str]:
    """Names of the packages that installing `requirements` brings into this environment."""
    found, todo = set(), [Requirement(text) for text in requirements]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for seen, extra in found if seen == name}:
            found.add((name, extra))
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                requires = map(Requirement, importlib.metadata.requires(name) or ())
                todo += [one for one in requires if not one.marker or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def test_every_package_that_the_code_imports_is_required(installed):
    requirements = importlib.metadata.Distribution.at(next(installed.glob("catbreeds-*.dist-info"))).requires
    brought = closure(requirements)
    providers = importlib.metadata.packages_distributions()
    missing = {
        module: path
        for module, path in imported().items()
        if not brought & set(map(canonicalize_name, providers.get(module, ())))
    }
    assert missing == {}
