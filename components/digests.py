"""Digests of files and of source code, which are part of the cache keys because TFX does not include their content."""

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from components.local_copies import local_copy

_PACKAGES = ("components", "pipeline", "serving")


def file_digest(path: str | Path) -> str:
    """SHA-256 of the content of a local or remote file, in hex."""
    with local_copy(str(path)) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(*modules: str) -> str:
    """SHA-256 of the source of `modules` and of all modules of this project that they import, even indirectly."""
    digest = hashlib.sha256()
    for name in sorted(transitive_imports(modules)):
        digest.update(f"{name}\0{file_digest(_source_path(name))}\0".encode())
    return digest.hexdigest()


def git_commit() -> str | None:
    """Git commit of this code, with "-dirty" if files differ from it; None outside a Git checkout.

    A container image has no checkout; its environment variable SOURCE_COMMIT is the commit that it was built from.
    """
    if commit := os.environ.get("SOURCE_COMMIT"):
        return commit
    if not shutil.which("git"):
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    here = Path(__file__).resolve().parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None


def transitive_imports(modules: Iterable[str]) -> set[str]:
    """Names of `modules` and of all modules of this project that they import, directly or indirectly."""
    visited, pending = set(), list(modules)
    while pending:
        name = pending.pop()
        if name not in visited:
            visited.add(name)
            pending.extend(_direct_imports(name))
    return visited


@cache
def _direct_imports(name: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(_source_path(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # In `from package import x`, x may be a module or an attribute of the package.
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return frozenset(n for n in names if n.split(".")[0] in _PACKAGES and _is_module(n))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source_path(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin)
