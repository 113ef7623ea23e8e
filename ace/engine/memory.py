"""Measure the most memory that a training needed."""

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use at once since the process began.

    Args:
        device: A CUDA device: what torch's allocator held for tensors there. Any other: this process's resident set,
            without its loader's workers.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
