"""Huge pages for the memory of TensorFlow.

Linux can use pages of 2 MB instead of 4 kB, so that the CPU translates fewer addresses ("transparent huge pages"). By
default, most distributions do so only for memory that a program marks. glibc 2.35 and later marks all large allocations
if an environment variable is set when the process starts. Gain: "huge pages" of `benchmarks/optimizations.py`.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
VALUE = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Run the command of this process again with huge pages, in the same process ID; do nothing if that is done.

    Call it before the process has started anything. If the user sets the variable, it stays unchanged.
    """
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = VALUE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
