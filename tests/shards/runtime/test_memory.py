import subprocess
import sys

import pytest

COUNT = """
import resource
import numpy as np
from shards.runtime.memory import keep_freed_memory

if {is_kept}:
    keep_freed_memory()
def one_batch():
    [np.ones(3 * 2**20, np.uint8) for _ in range(8)]

one_batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    one_batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_page_faults(is_kept: bool) -> int:
    command = [sys.executable, "-c", COUNT.format(is_kept=is_kept)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the switch is the GNU C library's")
def test_large_buffers_are_used_again() -> None:
    assert num_page_faults(is_kept=True) < num_page_faults(is_kept=False) / 5
