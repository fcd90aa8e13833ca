"""Files: written whole or not at all, read with limits, and folders that one process owns."""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dgunet.base.errors import InputError, naming, printable
from dgunet.base.structures import check

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".part"  # ends the name of a file that is being written
_IMAGE, _ARCHIVE = "an image", "a checkpoint or archive"
_KINDS = {  # by the first bytes
    b"\x89PNG": _IMAGE,
    b"\xff\xd8": _IMAGE,
    b"II*\0": _IMAGE,
    b"MM\0*": _IMAGE,
    b"RIFF": _IMAGE,
    b"BM": _IMAGE,
    b"PK": _ARCHIVE,
    b"\x80": _ARCHIVE,
    b"\x89HDF": "an HDF5 file",
    b"\x08": "an ONNX file",
}


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`. The file written there becomes `path` when the block
    ends without an error, and is deleted otherwise. Parent folders are made; a link called `path`
    is replaced, not followed. Raises `InputError` where `path` is a device, a pipe, or a file of
    another kind than the one written, and `OSError`s that name it."""
    path = Path(path)
    if path.exists():
        regular_file(path, "the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not made from the name of `path`, which may be as long as names can be.
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with naming(path):
            yield partial
            old, new = _kind(path), _kind(partial)
            if old not in ("", new):
                raise InputError(f"{path}: is {old}, and would be replaced by {new}; not written")
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            partial.unlink()


def _kind(path: Path) -> str:
    """Return in words what kind of file lies there; nothing of none and of an empty one."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return ""
    found = next((kind for first, kind in _KINDS.items() if start.startswith(first)), "")
    return found or ("binary data" if b"\0" in start else "text" if start else "")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a binary file, in memory, and write what it holds: `path` gets it only when
    it is complete and on disk, so that a process killed in between leaves the old file whole. A
    link is followed; otherwise as `replacing`."""
    path, content = Path(path).resolve(), io.BytesIO()
    write(content)
    with replacing(path) as partial, open(partial, "xb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError, AttributeError):  # where folders can be synchronised
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def regular_file(path: str | os.PathLike, what: str = "a file") -> Path:
    """Return the path of a regular file. `what` is expected there, for the message. Raises
    `FileNotFoundError`, `IsADirectoryError`, and `InputError` for a device or a pipe, which may
    have no end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: does not exist; expected {what}") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: is a folder; expected {what}")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is no regular file; expected {what}")
    return Path(path)


def read_json(path: str | os.PathLike, what: str = "a JSON file", limit: int = 10**7) -> object:
    """Return what a JSON file of at most `limit` bytes holds. Raises as `regular_file` and
    `dgunet.base.structures.leaves` do, and `InputError` for a larger file or no JSON."""
    file = regular_file(path, what)
    if file.stat().st_size > limit:
        raise InputError(f"{path}: has {file.stat().st_size:,} bytes; expected {what}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # numbers of too many digits among them
        raise InputError(f"{path}: is no JSON ({printable(error)})") from error
    check(content, path)
    return content


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class OwnedFolder:
    """A folder that no other process owns until `close`, or the end of this one however it comes.
    It is made if needed; what processes that were killed left half-written in it is removed. Raises
    `InputError` where another process owns it, which the message names."""

    def __init__(self, path: str | os.PathLike):
        self.lock = Path(path) / ".lock"
        self.file: int | None = None
        Path(path).mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            self._take()
        for folder, _, names in os.walk(str(path)):
            if Path(folder, ".lock") != self.lock and ".lock" in names:
                continue  # of another process
            for name in names:
                if re.fullmatch(rf"\.[0-9a-f]{{32}}{re.escape(PARTIAL)}", name):
                    with contextlib.suppress(OSError):
                        Path(folder, name).unlink()

    def _take(self) -> None:
        while self.file is None:
            with naming(self.lock.parent):
                file = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # Not flock: forked processes, such as a loader's workers, would keep that lock.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                owner = printable(os.read(file, 1000).decode(errors="replace"))
                os.close(file)
                raise InputError(
                    f"{self.lock.parent}: {owner or 'another process'} writes there; expected a "
                    "folder of its own for each"
                ) from error
            except OSError:  # a file system without locks
                return os.close(file)
            with contextlib.suppress(FileNotFoundError):  # removed by the owner before
                if os.path.samestat(os.fstat(file), os.stat(self.lock)):
                    self.file = file
                    continue
            os.close(file)
        os.ftruncate(self.file, 0)
        owner = f"process {os.getpid()} on {os.uname().nodename}, since {time.ctime()},"
        os.write(self.file, owner.encode())

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.lock.unlink()
            os.close(self.file)
            self.file = None

    def __enter__(self) -> "OwnedFolder":
        return self

    def __exit__(self, *_) -> None:
        self.close()
