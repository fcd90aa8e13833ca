import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from dgunet.inference.memory import keep_freed_memory, return_freed_memory

def faults():
    for _ in range(20):  # the first ones find their place
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

lost = faults()
assert keep_freed_memory()
print(lost, faults())
return_freed_memory((1,))
print(resident())
tensors = [torch.ones(2**24) for _ in range(4)]  # 256 MiB
del tensors
for shape in ((1,), (2,)):
    return_freed_memory(shape)
    print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_used_again_but_returned_before_tensors_of_another_shape():
    """Without, every page of every tensor faults anew."""
    program = [sys.executable, "-c", PROGRAM]
    words = subprocess.run(program, capture_output=True, check=True).stdout.split()
    faults, faults_when_kept, before, same_shape, other_shape = map(float, words)
    assert faults_when_kept < 0.01 * faults
    assert same_shape > before + 250
    assert other_shape == pytest.approx(before, abs=20)
