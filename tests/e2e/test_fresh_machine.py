"""`make demo` on a new machine: a minimal Debian 12 with the packages that the README lists, as an ordinary user.

The test clones the committed state into a separate root and downloads all packages, so that builds and caches of this
machine are not used.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.settings import ROOT
from tests import debian as debian_12


class Machine:
    """A root file system in which commands run, isolated from this machine except for network and CPUs."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, command: str, user: str = "root") -> subprocess.CompletedProcess:
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"HOME": home, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        return subprocess.run(
            debian_12.enter(
                f"echo {shlex.quote(str(self.root))}",
                f"{user}:{user}",
                ("sh", "-c", f"cd && {command}"),
                [(path, str(path)) for path in debian_12.registry_files()],
            ),
            env=variables | debian_12.registries(),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def machine(debian, tmp_path_factory):
    """Debian with the user "cat" and a clone of this repository in the user's home."""
    root = tmp_path_factory.mktemp("machine") / "root"
    try:
        subprocess.run(["cp", "--archive", debian, root], check=True)
        machine = Machine(root)
        assert machine.run("useradd --create-home --shell /bin/sh cat").returncode == 0
        clone = root / "home" / "cat" / "catbreeds"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, clone], check=True)
        assert machine.run("chown -R cat:cat /home/cat").returncode == 0
        yield machine
    finally:  # pytest would keep these 6 GB
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


@pytest.mark.slow
def test_make_demo_succeeds_with_the_packages_of_the_readme(machine):
    for compiler in ("cc", "gcc", "g++", "c++", "clang"):
        assert machine.run(f"command -v {compiler}").returncode != 0
    assert machine.run("find / -xdev -name Python.h").stdout == ""

    done = machine.run("cd catbreeds && make demo", user="cat")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, report, _, prediction, last = done.stdout.splitlines()  # make also prints the commands
    assert report == "Report: runs/demo/report/index.html"
    # The networks have random weights, so the breed of the photo need not be the most probable one of its set.
    assert re.match(r"runs/demo/unseen/Emberling/\S+\.jpg: [\w ]+ \d+%, .*; could be .*\bEmberling\b", prediction)
    assert last == "To serve the model with a web page, run: .venv/bin/catbreeds up --workdir runs/demo"
