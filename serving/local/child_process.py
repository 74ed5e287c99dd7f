"""Child processes that the kernel kills when their parent ends, even if the parent is killed (Linux).

Run as a program, this module binds its process to the given parent and then executes a command. This also works for a
parent with threads, where only exec is safe after a fork.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Make the kernel kill this process when the thread that started it ends, and so when the parent ends (Linux).

    Args:
        parent_pid: Process ID of the parent.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent ended before the call above
        os._exit(1)


def bound_command(command: Sequence[str]) -> list[str]:
    """Return a command that runs `command` until the thread that starts it ends.

    The command starts with the stop signals unblocked, even if this thread blocks them.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.execvp(sys.argv[2], sys.argv[2:])
