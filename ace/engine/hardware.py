"""Say which machine this is, as the record of a training needs it."""

import os
import platform
from pathlib import Path

import psutil

from ace.models.model_config import Hardware

_CPU_INFO = Path("/proc/cpuinfo")


def hardware() -> Hardware:
    """Describe this machine by what stays the same on it: products and sizes, no name of its own and no load.

    The accelerators are those that this process sees, whether it uses them or not.
    """
    import torch

    # A driver that torch cannot use still counts its devices, and naming them would fail.
    num_accelerators = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Hardware(
        processor=_processor(),
        cores=os.cpu_count(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        accelerators=tuple(torch.cuda.get_device_name(number) for number in range(num_accelerators)),
    )


def _processor() -> str:
    """Name the processor; Python itself knows no more than its kind on Linux."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
