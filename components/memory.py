"""Available memory of this machine or container."""

import re
from pathlib import Path


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that processes can still allocate, within the limit of the container; None if unknown.

    Args:
        group: Folder of the container's cgroup v2.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB", lines, re.M)[1]) * 1024
    except (OSError, TypeError):
        return None
    try:
        limit, used, stat = (
            (group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        # The page cache counts as used, although the kernel frees it as soon as a process needs the memory.
        cached = sum(map(int, re.findall(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)$", stat, re.M)))
        return min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError):  # no limit is set
        return free
