"""The installed package is complete and works without the source folder."""

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

PACKAGES = ("components", "pipeline", "schemas", "serving")
# Files for building images and generating code, which the code does not read.
NOT_INSTALLED = ("Dockerfile", "*.proto", "docker-compose.yaml")
FOR_NOTEBOOKS = "pipeline/results/notebook.py"  # their requirements are in dev.in


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the installed package, without its requirements."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "k8s"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([uv, "pip", "install", *options, "--target", target, source], check=True)
    return target


def files(folder: Path) -> set[str]:
    all_files = (path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    relative = (path.relative_to(folder) for path in all_files if not any(map(path.match, NOT_INSTALLED)))
    return {str(path) for path in relative if not {"__pycache__", "k8s"} & set(path.parts)}


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
    # Compiling reads the schemas and imports the same modules as a run.
    assert call("compile", "--profile", "smoke") == "kfp_specs/smoke.yaml\n"
    compiled = (tmp_path / "kfp_specs" / "smoke.yaml").read_text()
    assert compiled == (ROOT / "kfp_specs" / "smoke.yaml").read_text()


def imported_modules() -> dict[str, str]:
    """External top-level module -> a file of this project that imports it."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        if str(path.relative_to(ROOT)) == FOR_NOTEBOOKS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {module.partition(".")[0]: str(path) for module in modules}
    return {module: path for module, path in found.items() if module not in {*sys.stdlib_module_names, *PACKAGES}}


def closure(requirements: list[str]) -> set[str]:
    """Names of the packages that installing `requirements` installs, including dependencies."""
    found, pending = set(), [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for seen, extra in found if seen == name}:
            found.add((name, extra))
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                requires = map(Requirement, importlib.metadata.requires(name) or ())
                pending += [one for one in requires if not one.marker or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def test_every_package_that_the_code_imports_is_required(installed):
    requirements = importlib.metadata.Distribution.at(next(installed.glob("catbreeds-*.dist-info"))).requires
    installed_packages = closure(requirements)
    providers = importlib.metadata.packages_distributions()
    missing = {
        module: path
        for module, path in imported_modules().items()
        if not installed_packages & set(map(canonicalize_name, providers.get(module, ())))
    }
    assert missing == {}
