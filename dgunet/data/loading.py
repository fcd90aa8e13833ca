"""Batches of a data set, made by worker processes."""

from collections.abc import Iterable, Iterator

from dgunet.base.errors import InputError


def batches(loader: Iterable[dict]) -> Iterator[dict]:
    """Yield the batches of a `DataLoader`. It turns an error of a worker into one of the same type
    whose message is a traceback; of an `InputError` the message is told as it was."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error
