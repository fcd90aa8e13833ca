"""Threads: reading and writing while computing, and one function on many items."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from dgunet.base.errors import InputError


def overlapped(
    items: Iterable,
    read: Callable,
    compute: Callable,
    write: Callable,
    threads: int,
    ahead: int = 4,
) -> Generator:
    """Yield each item once `compute(item, read(item))` is done, whose result `write(item, result)`
    writes. Reading and writing run in threads while others are computed. At most `ahead` items are
    read before their turn, and as many wait to be written."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        reading = deque((item, pool.submit(read, item)) for item in islice(remaining, ahead))
        writing: deque = deque()
        while reading:
            item, future = reading.popleft()
            data = future.result()
            reading.extend((later, pool.submit(read, later)) for later in islice(remaining, 1))
            writing.append(pool.submit(write, item, compute(item, data)))
            if len(writing) > ahead:
                writing.popleft().result()
            yield item
        for future in writing:
            future.result()


def thread_count(jobs: int) -> int:
    """Return how many threads `jobs` asks for: -1 is one per core. Raises `InputError`."""
    if jobs < 1 and jobs != -1:
        raise InputError(f"jobs is {jobs}; expected 1 or more, or -1 for one per core")
    return jobs if jobs > 0 else os.cpu_count() or 1


def in_parallel(function: Callable, items: Iterable, jobs: int) -> Iterator:
    """Yield `function(item)` of every item, in order, from threads as `thread_count` says.

    The first error of `function` is raised once the calls that have begun have returned: left
    running, they would be killed in the middle when the program ends.
    """
    with ThreadPoolExecutor(thread_count(jobs)) as pool:
        yield from pool.map(function, items)
