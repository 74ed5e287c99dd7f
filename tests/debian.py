"""A bare Debian 12 below a folder: debootstrap makes it, and commands run in it as on a machine of its own."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.settings import ROOT

RELEASE = "bookworm"  # Debian 12

# Where pip and uv find packages, and which certificates they trust; but nothing that they keep on this machine.
_REGISTRIES = re.compile(
    "(?!.*(CACHE|PYTHON))(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE)|(https?|no|all)_proxy", re.IGNORECASE
)

# Mounts are this process's own, so they end with it. The command that prints the root, "ro" or "rw", then paths to
# share, each with its place in the root, up to "--". The command becomes process 1, as in a container.
_IN_ROOT = """
root=$(eval "$1"); mode=$2; shift 2
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"; shift 2
done
shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
if [ "$mode" = ro ]; then
  mount -o remount,bind,ro "$root"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
fi
cd "$root"
exec chroot "$@"
"""


def why_not() -> str | None:
    """Why a test cannot have a Debian here."""
    if os.geteuid() != 0:
        return "only root can make a root file system"
    if not shutil.which("debootstrap"):
        return "no debootstrap; make debootstrap installs it"
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "nothing can be mounted here, as in a container without privileges"
    return None


def install(root: Path) -> None:
    """Debian with the packages that the README asks for."""
    packages = re.search(r"apt-get install (.+)", (ROOT / "README.md").read_text())[1].split()
    options = ("--variant=minbase", f"--include={','.join(packages)}")
    command = ["unshare", "--mount", "debootstrap", *options, RELEASE, root, *_mirror()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def _mirror() -> list[str]:
    """The one that this machine's apt uses; without, debootstrap knows one."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {RELEASE}", "Component: main"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[:1]


def registries() -> dict[str, str]:
    """Environment variables with which pip and uv find packages from within a root."""
    return {name: value for name, value in os.environ.items() if _REGISTRIES.match(name)}


def registry_files() -> list[Path]:
    """What those variables name on this machine, such as certificates."""
    paths = {Path(word) for value in registries().values() for word in value.split()}
    return sorted(path for path in paths if path.is_absolute() and path.exists())


def enter(
    root: str,
    user: str,
    command: Iterable[str],
    shared: Iterable[tuple[Path, str]] = (),
    read_only: bool = False,
) -> list[object]:
    """The command line that runs a command in a root; it sees nothing else of this machine but its network and CPUs.

    Args:
        root: a shell command that prints the path of the root.
        user: USER:GROUP.
        command: what runs there, as process 1.
        shared: files and folders of this machine, each with its place there.
        read_only: only `shared` and /tmp can be written to.
    """
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", _IN_ROOT, "sh"),
        *(root, "ro" if read_only else "rw"),
        *(part for pair in shared for part in pair),
        *("--", f"--userspec={user}", "."),
        *command,
    ]
