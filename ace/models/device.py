"""The device that networks compute on, chosen by name."""

import re

import torch

from shards.core.errors import ConfigError


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(name: str) -> torch.device:
    """Return the device of a name: `auto` (the accelerator, if there is one), or torch's, as `cpu` or `cuda:0`.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return default_device()
    try:
        probe = torch.empty(1, device=name)
        probe.cpu()  # refused by devices that hold no numbers, as meta
        return probe.device
    # What torch raises for a device that is not there differs from backend to backend.
    except Exception as error:
        reason = re.split(r"\.\s", str(error), maxsplit=1)[0].rstrip(".")
        raise ConfigError(f"device '{name}': {reason}; use auto, cpu or a device of this machine, as cuda:0") from None
