"""`make demo` on a fresh machine: a bare Debian 12 with the packages that the README names, and an ordinary user.

It works on what is committed, in a root of its own, and downloads all packages: nothing that this machine has built or
kept takes part.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.settings import ROOT

RELEASE = "bookworm"  # Debian 12

# Where pip and uv find packages, and which certificates they trust; but nothing that they keep on this machine.
REGISTRIES = re.compile(
    "(?!.*(CACHE|PYTHON))(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE)|(https?|no|all)_proxy", re.IGNORECASE
)

# Mounts are this process's own, so they end with it. Each argument behind the root is a path to share, up to "--".
IN_ROOT = """
root=$1; shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; touch "$root$1"; fi
  mount --bind "$1" "$root$1"; shift
done
shift
exec chroot "$@"
"""


class Machine:
    """A root file system; commands see nothing else of this machine but its network and its CPUs."""

    def __init__(self, root: Path):
        self.root = root
        self.registries = {name: value for name, value in os.environ.items() if REGISTRIES.match(name)}

    def run(self, command: str, user: str = "root") -> subprocess.CompletedProcess:
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"HOME": home, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", **self.registries}
        shared = {path for value in self.registries.values() for path in value.split() if Path(path).is_absolute()}
        return subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", IN_ROOT, "sh", self.root),
                *(path for path in sorted(shared) if Path(path).exists()),
                *("--", f"--userspec={user}:{user}", self.root),
                *("sh", "-c", f"cd && {command}"),
            ],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


def prerequisites() -> str:
    """Debian's packages that the README asks for, with commas between."""
    return ",".join(re.search(r"apt-get install (.+)", (ROOT / "README.md").read_text())[1].split())


def mirror() -> list[str]:
    """The one that this machine's apt uses; without, debootstrap knows one."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {RELEASE}", "Component: main"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[:1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("only root can make a root file system")
    if not shutil.which("debootstrap"):
        pytest.skip("no debootstrap; make debootstrap installs it")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("nothing can be mounted here, as in a container without privileges")
    root = tmp_path_factory.mktemp("machine") / "root"
    try:
        yield install(root)
    finally:  # 6 GB, which pytest would keep
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


def install(root: Path) -> Machine:
    """Debian with the user "cat", who has a clone of this repository."""
    options = ("--variant=minbase", f"--include={prerequisites()}")
    command = ["unshare", "--mount", "debootstrap", *options, RELEASE, root, *mirror()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    machine = Machine(root)
    assert machine.run("useradd --create-home --shell /bin/sh cat").returncode == 0
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, root / "home" / "cat" / "catbreeds"], check=True)
    assert machine.run("chown -R cat:cat /home/cat").returncode == 0
    return machine


@pytest.mark.slow
def test_make_demo_works_to_its_end_with_no_more_than_the_readme_asks_for(machine):
    for compiler in ("cc", "gcc", "g++", "c++", "clang"):
        assert machine.run(f"command -v {compiler}").returncode != 0
    assert machine.run("find / -xdev -name Python.h").stdout == ""

    done = machine.run("cd catbreeds && make demo", user="cat")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, report, _, prediction, last = done.stdout.splitlines()  # make says each command that it runs
    assert report == "Report: runs/demo/report/index.html"
    assert re.match(r"runs/demo/unseen/Emberling/\S+\.jpg: Emberling \d+%, ", prediction)
    assert last == "Now serve it, and ask on a web page: .venv/bin/catbreeds up --workdir runs/demo"
