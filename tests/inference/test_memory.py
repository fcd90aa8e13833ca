import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from dgunet.inference.memory import keep_freed_memory
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


RESIDENT = """
import resource, torch
from dgunet.inference.memory import keep_freed_memory, return_freed_memory
keep_freed_memory()
def show():
    pages = int(open("/proc/self/statm").read().split()[1])
    print(pages * resource.getpagesize())
return_freed_memory((1,))
show()
tensors = [torch.ones(2**24) for _ in range(4)]  # 256 MiB
del tensors
show()
return_freed_memory((1,))
show()
return_freed_memory((2,))
show()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_goes_back_before_tensors_of_another_shape():
    program = [sys.executable, "-c", RESIDENT]
    lines = subprocess.run(program, capture_output=True, check=True).stdout.split()
    before, freed, same, other = (int(line) / 2**20 for line in lines)
    assert freed > before + 250
    assert same == pytest.approx(freed, abs=2)
    assert other == pytest.approx(before, abs=20)
