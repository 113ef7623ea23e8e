"""What a record of a training says of its machine."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from ace.operations import hardware as module
from ace.operations.hardware import hardware


def test_the_machine_is_told_by_what_the_kernel_and_torch_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: A Fast One: 3 GHz\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert hardware() == {
        "processor": "A Fast One: 3 GHz",
        "cores": os.cpu_count(),
        "memory_gb": pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.06),
        "accelerators": ["GPU 0", "GPU 1"],
    }


@pytest.mark.parametrize("text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n"])
def test_where_the_kernel_names_no_processor_python_does(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert hardware()["processor"] == "aarch64"
