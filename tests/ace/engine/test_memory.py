"""The most memory that was in use at once, in bytes."""

import re
import sys
from pathlib import Path

import pytest
import torch

from ace.engine.memory import peak_memory_bytes

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own high-water mark is read from /proc")
def test_the_peak_on_the_cpu_is_the_kernels_high_water_mark_in_bytes() -> None:
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    del block
    status = Path("/proc/self/status").read_text()
    high_water = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert high_water is not None
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(1024 * int(high_water[1]), rel=0.02)


@pytest.mark.gpu
def test_the_peak_on_a_gpu_counts_tensors_that_are_gone_too() -> None:
    device = torch.device("cuda")
    before = peak_memory_bytes(device)
    block = torch.ones(before + 256 * MIB, dtype=torch.uint8, device=device)
    during = peak_memory_bytes(device)
    del block
    assert before + 256 * MIB <= during <= 2 * before + 300 * MIB
    assert peak_memory_bytes(device) == during
