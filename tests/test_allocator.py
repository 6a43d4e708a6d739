"""What a step frees is used again by the next one: no fresh pages."""

import sys

import pytest

from tests.programs import ForkServer

CODE = """
import resource, torch
from report2impression.program.process import give_back_memory, keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if {keep} else True
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    faults()
print(kept, faults())
give_back_memory()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept(libraries: ForkServer) -> None:
    found = {}
    for keep in (True, False):
        done = libraries.run("-c", CODE.format(keep=keep))
        kept, faults, afterwards = done.stdout.split()
        assert kept == "True", done.stderr
        found[keep] = int(faults)
        assert int(afterwards) > 16_000  # given back when asked
    assert found[True] < 20_000 < 100_000 < found[False]  # 64 MiB is 16,384 pages, eight times
