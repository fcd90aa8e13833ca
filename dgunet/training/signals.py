"""Signals to a training run: it saves, and ends; its loader's workers leave that to it."""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial

STOPPED: dict[int, str] = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


class Stop:
    """As a context, notes SIGTERM and SIGINT (Ctrl-C) instead of ending the process; `number` is
    the first of them, None as long as there is none.

    A second Ctrl-C ends it. Within two seconds it counts for the same one: `timeout` and torchrun
    pass on what the terminal or scheduler sends to all processes anyway.
    """

    def __init__(self):
        self.number: int | None = None
        self.time = 0.0

    def __enter__(self) -> "Stop":
        self.handlers = {number: signal.signal(number, self.note) for number in STOPPED}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.number is not None

    def note(self, number: int, _frame=None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if self.number is None:
            self.number, self.time = number, now
        elif number == signal.SIGINT and now - self.time > 2:
            raise KeyboardInterrupt


def outliving() -> Callable[[int], None]:
    """Return a `worker_init_fn` for a DataLoader: schedulers and terminals signal the whole group,
    and the step at hand needs its batch. Workers then obey only the SIGTERM by which the main
    process ends them at its own end."""
    ending = multiprocessing.Event()
    atexit.register(ending.set)
    return partial(_outlive, ending)


def _outlive(ending, _worker: int) -> None:
    def leave(*_):
        if ending.is_set():
            os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
