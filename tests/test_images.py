"""Static checks of the Dockerfiles: copied files, users, versions. tests/e2e/test_built_images.py builds the images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import dockerfile
import pytest

from components import digests
from pipeline.settings import ROOT

IMAGES = sorted([ROOT / "Dockerfile", *ROOT.glob("serving/*/Dockerfile")])
CONTAINER = ROOT / ".devcontainer" / "Dockerfile"  # for machines other than Linux on x86-64
HADOLINT = Path(sys.executable).with_name("hadolint")

every_image = pytest.mark.parametrize("path", IMAGES, ids=lambda path: str(path.relative_to(ROOT)))
every_dockerfile = pytest.mark.parametrize("path", [*IMAGES, CONTAINER], ids=lambda path: str(path.relative_to(ROOT)))


def stages(path: Path) -> list[list[dockerfile.Command]]:
    """Instructions of each stage, starting with FROM. The first list has the instructions before the first stage."""
    found: list[list[dockerfile.Command]] = [[]]
    for command in dockerfile.parse_file(str(path)):
        if command.cmd == "FROM":
            found.append([])
        found[-1].append(command)
    return found


def build_context_paths() -> list[str]:
    """Top-level paths that .dockerignore includes in the build context."""
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


@every_dockerfile
def test_hadolint_finds_no_problem(path):
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@every_image
def test_each_copied_path_exists_and_is_in_the_build_context(path):
    copied = [c for stage in stages(path) for c in stage if c.cmd == "COPY" and not c.flags]
    sources = [source for command in copied for source in command.value[:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if source.split("/")[0] not in build_context_paths()] == []


@pytest.mark.parametrize("name", ["gateway", "page"])
def test_the_image_copies_every_module_that_its_server_imports(name):
    last_stage = stages(ROOT / "serving" / name / "Dockerfile")[-1]
    copied = {
        source for command in last_stage if command.cmd == "COPY" and not command.flags for source in command.value[:-1]
    }
    modules = [f"serving.{name}.{path.stem}" for path in (ROOT / "serving" / name).glob("[!_]*.py")]
    needed = {f"{module.replace('.', '/')}.py" for module in digests.transitive_imports(modules)}
    missing = {
        path for path in needed if not {path, *map(str, Path(path).parents)} & copied and (ROOT / path).is_file()
    }
    assert missing == set()


@every_dockerfile
def test_the_image_does_not_run_as_root(path):
    users = [command.value[0] for command in stages(path)[-1] if command.cmd == "USER"]
    # A number, because Kubernetes cannot check whether a user name is root.
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", users[-1])


@every_dockerfile
def test_each_base_image_has_an_exact_version(path):
    before, *rest = stages(path)
    defaults = dict(command.value[0].split("=") for command in before)
    names = {stage[0].value[2] for stage in rest if len(stage[0].value) > 1} | {"scratch"}
    for stage in rest:
        base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], stage[0].value[0])
        assert base in names or re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base), base


@every_image
def test_the_last_stage_installs_nothing(path):
    runs = " ".join(command.value[0] for command in stages(path)[-1] if command.cmd == "RUN")
    assert not re.search(r"\b(apt-get|apt|pip|uv|gcc|build-essential)\b", runs)


@every_image
def test_packages_are_installed_only_from_a_lock(path):
    runs = " ".join(command.value[0] for stage in stages(path) for command in stage if command.cmd == "RUN")
    for install in re.findall(r"pip (?:--python \S+ )?install [^&]*", runs):
        # A lock allows only wheels; uv has a wheel, and the project's packages need no compiler.
        assert re.search(r"--require-hashes -r \S+\.lock|uv==|--no-build-isolation /build", install), install


def test_the_container_for_other_systems_has_the_packages_in_the_readme():
    required = set(re.search(r"apt-get install (.+)", (ROOT / "README.md").read_text())[1].split())
    installed = re.search(r"apt-get install -y --no-install-recommends ([^&\\]+)", CONTAINER.read_text())[1].split()
    assert required - {"python3", "python3-venv"} == set(installed)  # its base image has Python


def test_editors_and_docker_run_the_same_container():
    described = json.loads((CONTAINER.parent / "devcontainer.json").read_text())
    folder = next(command.value[0] for command in stages(CONTAINER)[-1] if command.cmd == "WORKDIR")
    assert described["build"]["dockerfile"] == CONTAINER.name
    assert described["build"]["options"] == described["runArgs"] == ["--platform=linux/amd64"]
    assert described["workspaceFolder"] == folder
    assert f"target={folder}," in described["workspaceMount"]
    commands = re.findall(r"docker (?:build|run) --.*", (ROOT / "docs" / "faq.md").read_text())
    assert commands == re.findall(r"docker (?:build|run) --.*", CONTAINER.read_text())
    assert f':{folder}"' in commands[1]
