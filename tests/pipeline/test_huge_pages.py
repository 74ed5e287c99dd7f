"""A restarted process uses huge pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.huge_pages import VALUE, VARIABLE
from pipeline.settings import ROOT

RESTART = """
import ctypes, os, sys
from pipeline.huge_pages import restart_with_huge_pages
print("started", flush=True)
restart_with_huge_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.memset(libc.malloc(ctypes.c_size_t(64 * 2**20)), 1, 64 * 2**20)
rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(os.getpid(), os.environ["GLIBC_TUNABLES"], sys.argv[1:], int(rows["AnonHugePages"].split()[0]) // 1024)
"""


def restart(**environment: str) -> tuple[int, list[str]]:
    """Return the process ID and the output."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", RESTART, "--an", "argument with spaces"]
    process = subprocess.Popen(command, cwd=ROOT, env=inherited | environment, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate()
    assert process.returncode == 0
    return process.pid, output.splitlines()


def test_a_process_restarts_once_with_the_same_id_and_arguments():
    pid, lines = restart()
    assert lines[:-1] == ["started", "started"]
    assert lines[-1].startswith(f"{pid} {VALUE} ['--an', 'argument with spaces'] ")


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=0", VALUE])
def test_a_value_that_the_user_sets_is_kept(value):
    pid, lines = restart(**{VARIABLE: value})
    assert lines[:-1] == ["started"]
    assert lines[-1].startswith(f"{pid} {value} ['--an', ")


def test_large_allocations_use_huge_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("huge pages are always on or off on this machine")
    assert int(restart()[1][-1].split()[-1]) >= 32
    assert int(restart(**{VARIABLE: ""})[1][-1].split()[-1]) < 32
