"""Files of tensors that this project writes."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ace.models.tensors import write_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_may_be_read_by_whom_the_user_lets_read_new_files(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_tensors({"weight": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode
    assert torch.equal(load_file(tmp_path / "a.safetensors")["weight"], torch.arange(6.0).reshape(2, 3).T)
