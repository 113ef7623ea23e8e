"""Say which machine this is, as the record of a training needs it."""

import os
import platform
from pathlib import Path
from typing import Any

import psutil

_CPU_INFO = Path("/proc/cpuinfo")


def hardware() -> dict[str, Any]:
    """Describe this machine: `processor`, number of `cores`, `memory_gb`, and the names of its `accelerators`."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    """Name the processor; Python itself knows no more than its kind on Linux."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
