"""What a record of a training says of its machine."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from ace.engine import hardware as module
from ace.engine.hardware import hardware


def test_the_machine_is_told_by_what_the_kernel_and_torch_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: A Fast One: 3 GHz\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert hardware().model_dump(mode="json") == {
        "processor": "A Fast One: 3 GHz",
        "cores": os.cpu_count(),
        "memory_gb": pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.06),
        "accelerators": ["GPU 0", "GPU 1"],
    }


@pytest.mark.parametrize("text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n", "model name\t:\n"])
def test_where_the_kernel_names_no_processor_python_does(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert hardware().processor == "aarch64"


def test_a_name_that_is_no_utf8_does_not_keep_a_training_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"model name\t: A Fast\xae One\n")
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    assert hardware().processor == "A Fast\N{REPLACEMENT CHARACTER} One"


def test_devices_of_a_driver_that_torch_cannot_use_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts them, and asking torch for a name fails: a training on the CPU must still finish."""

    def fail(number: int) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    assert hardware().accelerators == ()


def test_the_machine_is_the_same_every_time() -> None:
    assert hardware().model_dump_json() == hardware().model_dump_json()
