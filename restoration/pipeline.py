"""Reading and writing beside computing."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice


def overlapped(
    items: Iterable,
    read: Callable,
    compute: Callable,
    write: Callable,
    threads: int,
    ahead: int = 4,
) -> Iterator:
    """Yield each item once it is computed: `write(item, compute(item, read(item)))`, with reading
    and writing in threads beside the computing. At most `ahead` items are read before their turn,
    and as many wait to be written."""
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
