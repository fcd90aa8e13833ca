"""Files that appear whole or not at all, and their SHA-256."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dgunet.base.errors import naming


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`. The file written there becomes `path` when the block
    ends without an error, and is deleted otherwise. Parent folders are made; a link called `path`
    is replaced, not followed.

    Raises `IsADirectoryError` if `path` is a folder; the system's errors name `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, expected the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.part")  # the name may be as long as names can be
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a binary file that becomes `path` only when it is complete and on disk, so
    that a process killed in between leaves the old file whole. A link is followed; otherwise as
    `replacing`."""
    path = Path(path).resolve()
    with replacing(path) as partial, open(partial, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError, AttributeError):  # where folders can be synchronised
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
