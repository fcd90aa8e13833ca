import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from restoration.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # the first ones find their place
    before = faults()
    torch.ones(2**24)  # 64 MiB
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_used_again():
    """Without, every page of every tensor faults anew."""
    faults = {}
    for keep in (False, True):
        program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        faults[keep] = int(subprocess.run(program, capture_output=True, check=True).stdout)
    assert faults[True] < 0.01 * faults[False]
