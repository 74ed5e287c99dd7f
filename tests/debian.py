"""A minimal Debian 12 in a folder, created by debootstrap, in which commands run as on a separate machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.settings import ROOT

RELEASE = "bookworm"  # Debian 12

# Variables with the package indexes and certificates of pip and uv, without caches and interpreters of this machine.
_REGISTRIES = re.compile(
    "(?!.*(CACHE|PYTHON))(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE)|(https?|no|all)_proxy", re.IGNORECASE
)

# The mounts belong to the mount namespace of this process and disappear with it. Arguments: a command that prints the
# root, "ro" or "rw", pairs of a shared path and its path in the root, "--", and the arguments of chroot. The command
# becomes process 1, as in a container.
_RUN_IN_ROOT = """
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


def reason_to_skip() -> str | None:
    """Return the reason why this machine cannot create a Debian root, or None."""
    if os.geteuid() != 0:
        return "creating a root file system requires root"
    if not shutil.which("debootstrap"):
        return "debootstrap: not found; run `make debootstrap` to install it"
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "mounts are not permitted, as in an unprivileged container"
    return None


def install(root: Path) -> None:
    """Install Debian with the packages that the README lists."""
    packages = re.search(r"apt-get install (.+)", (ROOT / "README.md").read_text())[1].split()
    options = ("--variant=minbase", f"--include={','.join(packages)}")
    command = ["unshare", "--mount", "debootstrap", *options, RELEASE, root, *_mirror()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def _mirror() -> list[str]:
    """Mirror of this machine's apt, or [] for the default mirror of debootstrap."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {RELEASE}", "Component: main"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[:1]


def registries() -> dict[str, str]:
    """Environment variables that pip and uv need in the root to find packages."""
    return {name: value for name, value in os.environ.items() if _REGISTRIES.match(name)}


def registry_files() -> list[Path]:
    """Files of this machine that those variables refer to, such as certificates."""
    paths = {Path(word) for value in registries().values() for word in value.split()}
    return sorted(path for path in paths if path.is_absolute() and path.exists())


def enter(
    root: str,
    user: str,
    command: Iterable[str],
    shared: Iterable[tuple[Path, str]] = (),
    read_only: bool = False,
) -> list[object]:
    """Return the command line that runs `command` in a root, isolated from this machine except for network and CPUs.

    Args:
        root: Shell command that prints the path of the root.
        user: User and group, as USER:GROUP.
        command: Command that runs in the root as process 1.
        shared: Files and folders of this machine, each with its path in the root.
        read_only: Whether the root is read-only, except for `shared` and /tmp.
    """
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", _RUN_IN_ROOT, "sh"),
        *(root, "ro" if read_only else "rw"),
        *(part for pair in shared for part in pair),
        *("--", f"--userspec={user}", "."),
        *command,
    ]
