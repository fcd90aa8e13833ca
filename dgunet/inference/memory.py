"""Memory that a process has freed, kept for its next tensors."""

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h

_kept = False
_shape: tuple[int, ...] = ()


def keep_freed_memory() -> bool:
    """Make this process keep, from now on, the memory that it frees, and return whether it does:
    where the C library is glibc.

    glibc of itself gives memory of 32 MiB and more back to the system as soon as it is freed. For
    features of a large tile the next page faults then cost as much as the arithmetic does. It is a
    setting of the whole process; so programs make it, not the library."""
    global _kept
    if sys.platform == "linux" and not _kept:
        with contextlib.suppress(AttributeError, OSError):  # other C libraries
            mallopt = ctypes.CDLL(None).mallopt
            _kept = bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return _kept


def return_freed_memory(shape: tuple[int, ...]) -> None:
    """Give back to the system what `keep_freed_memory` has kept, if tensors of another shape than
    the last time come next: they would not fit the gaps that those have left."""
    global _shape
    if _kept and shape != _shape:
        ctypes.CDLL(None).malloc_trim(0)
    _shape = shape
