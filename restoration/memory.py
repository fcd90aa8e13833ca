"""Memory that a process has freed, kept for its next tensors."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make this process keep, from now on, the memory that it frees, and return whether it does:
    where the C library is glibc.

    glibc of itself gives memory of 32 MiB and more back to the system as soon as it is freed. For
    features of a large tile the next page faults then cost as much as the arithmetic does. What the
    process has once taken it keeps until it ends; so a program calls this, not a library."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
