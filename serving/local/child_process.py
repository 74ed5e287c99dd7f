"""Processes that the kernel kills when the process that started them has ended, however it ended (Linux).

Run as a program, this binds itself to the process id that it is given, and becomes the command that follows. That way
also a process with threads can start bound ones: after a fork nothing but exec is safe in it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, and with it the process `parent` (Linux).

    Args:
        parent: id of the parent process.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


def bound(command: Sequence[str]) -> list[str]:
    """Command that runs `command` bound to this process, as long as the thread lives that starts it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
