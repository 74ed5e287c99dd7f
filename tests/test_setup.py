"""`make setup` reports missing requirements of the machine, and otherwise installs the locked packages."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from pipeline.settings import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))

# Fake programs of a machine that meets all requirements; each appends its arguments to ran.txt.
MACHINE = {
    "uname": 'case "$1" in -s) echo Linux;; -m) echo x86_64;; esac',
    "getconf": "echo glibc 2.36",
    "grep": "exit 0",  # checks whether the CPU has AVX
    "git": "exit 0",
    "df": 'echo "Filesystem 1024-blocks Used Available Capacity Mounted on"; echo "/dev/sda1 9 9 90000000 1% /"',
    "python3": 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; ln -s ../../machine/python "$3/bin/python"; fi',
    "python": 'echo "PIP_USER=$PIP_USER" >> ran.txt; ln -s ../../machine/locked .venv/bin/uv',
    "locked": "exit 0",  # the uv of the environment
}
OTHER_TOOLS = ("sh", "awk", "env", "id", "ln", "mkdir", "touch")


@pytest.fixture
def make_setup(tmp_path):
    """Run `make setup` on the fake machine; return the exit code, stderr and the calls in ran.txt."""
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "setup.py", "requirements/environment.sh", "requirements/dev.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    machine = tmp_path / "machine"
    machine.mkdir()
    for tool in OTHER_TOOLS:
        (machine / tool).symlink_to(shutil.which(tool))

    def run(
        without: tuple[str, ...] = (), variables: Mapping[str, str] = MappingProxyType({}), **programs: str
    ) -> tuple[int, str, str]:
        for name, script in (MACHINE | programs).items():
            if name not in without:
                program = machine / name
                program.write_text(f'#!/bin/sh\necho "{name} $*" >> ran.txt\n{script}\n')
                program.chmod(0o755)
        environment = {"PATH": str(machine), **variables}
        command = [shutil.which("make"), "setup"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, (tmp_path / "ran.txt").read_text()

    return run


def test_setup_installs_the_locked_packages(make_setup):
    code, stderr, ran = make_setup()
    assert (code, stderr) == (0, "")
    assert "python3 -m venv .venv\n" in ran
    assert re.search("locked pip install .*--require-hashes .*-r requirements/dev.lock\n", ran)
    assert re.search("locked pip install .* -e .\n", ran)


@pytest.mark.skipif(not os.access("/proc/cpuinfo", os.R_OK), reason="requires /proc/cpuinfo")
def test_setup_warns_about_a_cpu_without_avx(make_setup):
    code, stderr, _ = make_setup(grep="exit 1")
    assert code == 0
    assert re.fullmatch("Warning: .* does not list AVX; .*\n", stderr)


MISLEADING_VARIABLES = {
    "PIP_USER": "1",
    "PIP_TARGET": "/elsewhere",
    "PIP_PREFIX": "/elsewhere",
    "PIP_PYTHON": "/elsewhere/python",
    "PIP_NO_BINARY": ":all:",
    "PIP_DRY_RUN": "1",
    "UV_TARGET": "/elsewhere",
    "UV_SYSTEM_PYTHON": "1",
    "UV_PYTHON": "3.13",
    "UV_NO_BINARY": "1",
    "UV_CONSTRAINT": "/elsewhere/constraints.txt",
    "UV_DRY_RUN": "1",
    "PYTHONPATH": "/elsewhere",
    "PYTHONHOME": "/elsewhere",
    "PYTHONUSERBASE": "/elsewhere",
}
SOURCE_VARIABLES = {
    "PIP_INDEX_URL": "https://mirror",
    "PIP_TRUSTED_HOST": "mirror",
    "UV_INDEX_URL": "https://mirror",
    "UV_DEFAULT_INDEX": "https://mirror",
    "UV_INDEX_MINE_PASSWORD": "secret",
    "UV_HTTP_TIMEOUT": "99",
    "UV_CACHE_DIR": "/cache",
    "https_proxy": "http://proxy:1",
}


@pytest.mark.parametrize("program", ["python3", "python", "locked"])
def test_installers_receive_the_variables_of_package_sources_but_none_that_redirect_the_installation(
    make_setup, program
):
    print_environment = f"env >> ran.txt\n{MACHINE[program]}"
    code, _, ran = make_setup(variables=MISLEADING_VARIABLES | SOURCE_VARIABLES, **{program: print_environment})
    assert code == 0
    lines = set(ran.splitlines())
    assert [name for name, value in MISLEADING_VARIABLES.items() if f"{name}={value}" in lines] == []
    assert [name for name, value in SOURCE_VARIABLES.items() if f"{name}={value}" not in lines] == []


def test_pip_ignores_a_configuration_for_user_installs(make_setup):
    _, _, ran = make_setup()
    assert "PIP_USER=0\n" in ran


NO_ENSUREPIP = f'case "$*" in *ensurepip*) exit 1;; esac; {MACHINE["python3"]}'


@pytest.mark.parametrize(
    ("without", "programs", "message"),
    [
        ((), {"uname": 'case "$1" in -s) echo Darwin;; -m) echo arm64;; esac'}, "Linux on x86-64; .* Darwin on arm64"),
        ((), {"uname": 'case "$1" in -s) echo Linux;; -m) echo aarch64;; esac'}, "this machine has Linux on aarch64"),
        ((), {"getconf": "echo glibc 2.27"}, r"need glibc 2\.28 or newer; this machine has glibc 2\.27\."),
        ((), {"getconf": "exit 1"}, "this machine has none"),
        (("git",), {}, "git is missing.*apt-get install git"),
        (("python3",), {}, "needs Python 3.11; neither python3.11"),
        ((), {"python3": "exit 1"}, "needs Python 3.11; neither python3.11"),
        ((), {"python3": NO_ENSUREPIP}, "python3 cannot create environments.*apt-get install python3-venv"),
        ((), {"df": "echo header; echo /dev/sda1 9 9 4900000 1% /"}, "take 5 GB .* 4 GB are free in /"),
    ],
)
def test_a_missing_requirement_is_reported_before_anything_is_installed(
    make_setup, tmp_path, without, programs, message
):
    code, error, _ = make_setup(without, **programs)
    assert code != 0
    assert re.search(message, error)
    assert not (tmp_path / ".venv").exists()


def test_all_missing_requirements_are_reported_at_once(make_setup):
    _, error, _ = make_setup(without=("git", "python3"), getconf="echo glibc 2.27")
    for word in ("glibc", "git", "Python 3.11"):
        assert word in error


@pytest.mark.parametrize("python3", ["exit 1", NO_ENSUREPIP])
def test_uv_creates_the_environment_if_python_cannot(make_setup, python3):
    uv = 'if [ "$1" = venv ]; then mkdir -p "$5/bin"; ln -s ../../machine/python "$5/bin/python"; fi'
    code, stderr, ran = make_setup(python3=python3, uv=uv)
    assert (code, stderr) == (0, "")
    assert "uv venv --seed --python 3.11 .venv\n" in ran


def test_the_page_named_in_the_message_for_other_systems_has_the_entry(make_setup):
    _, error, _ = make_setup(uname="echo Darwin")
    page, symptom = re.search(r'(docs/\S+) .*"(.+)"', error).groups()
    assert f"**`{symptom}" in (ROOT / page).read_text()


# --- Packages are installed from wheels


@pytest.fixture(scope="module")
def source_only(tmp_path_factory):
    """A folder with two packages without a wheel; one is an exception in wheels.txt."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("needs-a-compiler", "rouge-score"):
        project = folder / f"{name.replace('-', '_')}-1.0"
        project.mkdir()
        (project / "PKG-INFO").write_text(f"Metadata-Version: 2.2\nName: {name}\nVersion: 1.0\n")
        (project / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["setuptools"]\n[project]\nname = "{name}"\nversion = "1.0"\n'
        )
        with tarfile.open(folder / f"{project.name}.tar.gz", "w:gz") as archive:
            archive.add(project, project.name)
    return folder


def rules(lock: Path) -> list[str]:
    return [line for line in lock.read_text().splitlines() if line.startswith("--")]


def resolve(package: str, lock: Path, folder: Path, tmp_path: Path, *installer: object) -> subprocess.CompletedProcess:
    """Dry run of an installer for a package, with the options of the lock."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("\n".join([*rules(lock), f"{package}==1.0\n"]))
    command = [*installer, "--dry-run", "--no-deps", "--no-index", "--find-links", folder, "-r", requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False)


UV = (Path(sys.executable).with_name("uv"), "pip", "install", "--python", sys.executable)
PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check")


@pytest.mark.parametrize("installer", [UV, PIP], ids=["uv", "pip"])
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_package_without_a_wheel_is_rejected(source_only, tmp_path, lock, installer):
    done = resolve("needs-a-compiler", lock, source_only, tmp_path, *installer)
    assert done.returncode != 0
    assert re.search("needs-a-compiler==1.0 has no usable wheels|No matching .* for needs-a-compiler==1.0", done.stderr)


def test_an_exception_may_be_installed_from_source(source_only, tmp_path):
    done = resolve("rouge-score", ROOT / "requirements" / "pipeline.lock", source_only, tmp_path, *UV)
    assert done.returncode == 0, done.stderr


def test_the_locks_contain_the_rules_of_wheels_txt():
    expected = sorted(rules(ROOT / "requirements" / "wheels.txt"))
    assert {lock.name: sorted(rules(lock)) for lock in LOCKS} == {lock.name: expected for lock in LOCKS}


def test_unused_packages_are_locked_for_development_but_not_for_the_images():
    unused = re.findall(r"^[\w-]+$", (ROOT / "requirements" / "unused.txt").read_text(), re.MULTILINE)
    assert unused
    locked = {lock.stem: re.findall(r"^([\w-]+)==", lock.read_text(), re.MULTILINE) for lock in LOCKS}
    assert set(unused) <= set(locked.pop("dev"))
    assert [name for names in locked.values() for name in names if name in unused] == []
