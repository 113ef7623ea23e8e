"""The precision that parts of a network keep when autocast lowers that of the others."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Compute what is inside in the precision of its tensors, whatever autocast says around it."""
    name = device.type
    return torch.autocast(name, enabled=False) if torch.amp.is_autocast_available(name) else nullcontext()
