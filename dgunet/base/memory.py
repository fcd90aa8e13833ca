"""How much memory is free, and whether a request fits it."""

import contextlib
import math
from pathlib import Path

from dgunet.base.errors import InputError


def free_memory() -> float:
    """Return how many bytes are free, for this container if it is one; inf where that is unknown:
    on other systems than Linux."""
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError, KeyError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(lines["inactive_file"])  # a cache
        free.append(limit - used)
    return max(0, min(free))


def require_memory(needed: float, what: str) -> None:
    """Raise `InputError` unless so many bytes are free. `what` needs them, for the message."""
    free = free_memory()
    if needed > free:
        raise InputError(
            f"{what} would take about {needed / 1e9:,.1f} GB of memory; {free / 1e9:,.1f} GB are "
            "free"
        )
