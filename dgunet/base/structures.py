"""What was read from a file of unknown origin: values inside values, within limits."""

from collections.abc import Iterator, Mapping

from dgunet.base.errors import InputError

DEPTH, NUMBER = 32, 1_000_000


def leaves(value: object, path: object) -> Iterator[object]:
    """Yield what dicts (keys and values), lists, tuples and sets hold in the end. `path` is the
    file's name, for messages. Raises `InputError` if they are nested deeper than `DEPTH`, hold more
    than `NUMBER` values, each counted as often as it is referred to, or an integer of more than 64
    bits: few bytes can stand for these, and printing or comparing them would not end."""
    waiting, count = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > DEPTH or count > NUMBER:
            raise InputError(
                f"{path}: nested more than {DEPTH} deep, or more than {NUMBER:,} values; expected "
                "fewer"
            )
        if isinstance(item, int) and item.bit_length() > 64:
            raise InputError(
                f"{path}: an integer of {item.bit_length():,} bits; expected 64 at most"
            )
        if isinstance(item, Mapping):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += [(part, depth + 1) for part in item]
        else:
            yield item


def check(value: object, path: object) -> None:
    """Raise as `leaves` does."""
    for _ in leaves(value, path):
        pass
