import subprocess
import sys
import threading
import time

import pytest

from dgunet.base.threads import in_parallel, overlapped


@pytest.mark.parametrize("jobs", [1, 3, -1])
def test_results_are_in_order(jobs):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_parallel(work, range(40), jobs)) == [n * n for n in range(40)]


@pytest.mark.parametrize("jobs", [1, 4])
def test_an_error_ends_it_when_all_that_began_has_ended(jobs, recwarn):
    lock, running, begun = threading.Lock(), set(), []

    def work(item):
        with lock:
            running.add(item)
            begun.append(item)
        time.sleep(0.01)
        with lock:
            running.remove(item)
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        list(in_parallel(work, range(1000), jobs))
    assert not running and len(begun) < 100 and not recwarn
    results = in_parallel(work, range(100, 1000), jobs)
    next(results)
    results.close()
    assert not running and not recwarn


def test_a_program_that_ends_with_an_error_ends_in_order():
    """Threads in the middle of native code used to abort it (exit code -6)."""
    program = """
import cv2, numpy as np
from dgunet.base.threads import in_parallel, overlapped
image = np.zeros((1500, 1500), np.float32)
def work(item):
    if item == 3:
        raise SystemExit2("no")
    return cv2.GaussianBlur(image, (0, 0), 9)
class SystemExit2(Exception): pass
try:
    list(in_parallel(work, range(50), 4))
except SystemExit2:
    raise SystemExit(2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"")


def test_reading_and_writing_go_on_beside_the_computing():
    main, begun, written = threading.current_thread(), [], []

    def read(item):
        begun.append(item)
        return item * 10

    def compute(item, data):
        assert threading.current_thread() is main and len(begun) - item <= 5
        return data + 1

    def write(item, result):
        assert threading.current_thread() is not main
        written.append((item, result))

    assert list(overlapped(range(50), read, compute, write, threads=3)) == list(range(50))
    assert sorted(written) == [(item, item * 10 + 1) for item in range(50)]

    def fail(item, result):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(overlapped(range(50), read, lambda item, data: data, fail, threads=3))
