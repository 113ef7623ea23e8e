"""Files of tensors that this project writes."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions of any other new file; safetensors writes for its owner alone.

    Args:
        tensors: Detached and copied to the CPU where necessary.
        path: A file in a folder that exists.
    """
    path.touch()
    mode = path.stat().st_mode
    # One entry: safetensors writes several in an order drawn anew each time, and equal models would differ in sha256.
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)
