"""Digests of files, JSON values and code: they change if and only if the content changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from components import digests
from components.digests import code_digest, file_digest, json_digest

PROJECT = {
    "components/__init__.py": "",
    "components/part.py": "import os\nfrom pipeline import helper\nfrom serving.names import CAT\n",
    "components/other.py": "VALUE = 1\n",
    "pipeline/__init__.py": "",
    "pipeline/helper.py": "def help():\n    from serving import late\n    import yaml\n",
    "serving/__init__.py": "",
    "serving/names.py": "CAT = 'cat'\n",
    "serving/late.py": "import components.part\n",
}


class Project:
    """A small source tree in which `code_digest` looks up modules instead of in this project."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in PROJECT.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)

    def digest(self, *modules: str) -> str:
        """Compute the digest in a subprocess, because this process has already imported the real packages."""
        code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['code_digest'](*sys.argv[2:]))"
        command = [sys.executable, "-c", code, digests.__file__, *modules]
        # PYTHONPATH takes precedence over the installed packages of this project.
        environment = {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def edit(self, name: str) -> None:
        path = self.root / name
        path.write_text(path.read_text() + "# edited\n")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize(
    "edited",
    ["components/part.py", "pipeline/helper.py", "serving/names.py", "serving/late.py"],
    ids=["itself", "imported", "imported by name", "imported inside a function of an imported module"],
)
def test_the_code_digest_changes_with_every_imported_module(project, edited):
    before = project.digest("components.part")
    project.edit(edited)
    assert project.digest("components.part") != before


def test_the_code_digest_is_stable_and_does_not_change_with_unrelated_modules(project):
    before = project.digest("components.part")
    assert project.digest("components.part") == before
    project.edit("components/other.py")
    assert project.digest("components.part") == before


def test_the_code_digest_of_several_modules_changes_with_each(project):
    both = project.digest("components.part", "components.other")
    assert both == project.digest("components.other", "components.part") != project.digest("components.part")
    project.edit("components/other.py")
    assert project.digest("components.part", "components.other") != both


def test_the_code_digest_of_a_real_component_covers_its_imports(monkeypatch, tmp_path):
    before = code_digest("components.ingestion.image_example_gen")
    source_path = digests._source_path
    for name, changes in {
        "serving.photo_normalization": True,
        "components.json_files": True,
        "pipeline.results.report": False,
    }.items():
        edited = tmp_path / f"{name}.py"
        edited.write_bytes(source_path(name).read_bytes() + b"# edited\n")
        with monkeypatch.context() as patch:
            paths = {name: edited}
            patch.setattr(digests, "_source_path", lambda name, paths=paths: paths.get(name) or source_path(name))
            assert (code_digest("components.ingestion.image_example_gen") != before) is changes, name
    assert code_digest("components.ingestion.image_example_gen") == before


def test_git_commit_is_read_from_the_environment_of_the_image(monkeypatch):
    monkeypatch.setenv("SOURCE_COMMIT", "0123abc")
    assert digests.git_commit() == "0123abc"


def test_the_json_digest_ignores_only_the_order_of_keys():
    value = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert json_digest(value) == json_digest({"b": {"d": None, "c": [1, 2]}, "a": 1})
    others = [{"a": 1}, {**value, "a": "1"}, {**value, "b": {"c": [2, 1], "d": None}}, {**value, "a": 1.5}]
    assert len({json_digest(other) for other in [value, *others]}) == 5


def test_the_file_digest_depends_only_on_the_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"cat")
    two.write_bytes(b"cat")
    assert file_digest(one) == file_digest(two) == "77af778b51abd4a3c51c5ddd97204a9c3ae614ebccb75a606c3b6865aed6744e"
    two.write_bytes(b"cat\n")
    assert file_digest(one) != file_digest(two)
