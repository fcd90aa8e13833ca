"""User errors, reported in one line.

Library code raises `InputError` (a `ValueError`) for what the user can correct: a file that is not
an image, a key that does not exist. A program decorates its `main` with `command`, which prints
such an error in one line and exits with 2; any other exception is a bug and keeps its traceback.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class InputError(ValueError):
    """Unusable input. The message names the file (or key), what was found and what was expected, in
    one line."""


def first_few(names: Sequence, limit: int = 3) -> str:
    """Return the first names, comma-separated, and how many more there are.

    >>> first_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(map(printable, names[:limit]))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def printable(text: object, limit: int = 300) -> str:
    """Return what came from a file as it may be printed: on one line, what a terminal would obey
    escaped, of more than `limit` characters the beginning and the end.

    >>> printable("red: \\x1b[31m"), printable("x" * 10**6, limit=8)
    ('red: \\\\x1b[31m', 'xxxx…xxxx')
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-limit // 2 :]}"
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a program's `main`: user errors and system errors (a full disk, a folder without
    write permission) become one line on stderr and exit code 2, Ctrl-C becomes exit code 130, and a
    closed pipe (`| head`) ends the program quietly."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed: the next file opened would get its number
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        try:
            main(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            _give_up_stdout()
            sys.exit(1)
        except (InputError, OSError, MemoryError) as error:
            message = f"error: {_in_a_line(error)}"
            print(message, file=sys.stderr)
            if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun prints it at its end
                # as the first to fail: those that it takes along do so within the same second
                told = {"message": message, "timestamp": int(time.time()) - 1}
                Path(file).write_text(json.dumps(told), encoding="utf-8")
            _give_up_stdout()
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def end_interrupted_imports_in_a_line() -> None:
    """Make Ctrl-C before `main` begins, while torch is imported, end the program as after it."""
    before = sys.excepthook

    def hook(kind, error, trace) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


def _give_up_stdout() -> None:
    """Drop what standard output does not take, of which Python would complain at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Make system errors inside the block name that file, such as in place of a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None
        raise


def _in_a_line(error: Exception) -> str:
    """Return an error's message.

    >>> _in_a_line(PermissionError(13, "Permission denied", "out/a.png"))
    'out/a.png: Permission denied'
    """
    text = str(error) or "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        name = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else ""
        text = f"{name}: {error.strerror}" if name else error.strerror
    return printable(" ".join(text.split()), limit=2000)
