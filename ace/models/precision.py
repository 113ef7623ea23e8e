"""The precision that networks compute in, and what an accelerator has to be told for it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from ace.models.params import Precision

Network = TypeVar("Network", bound=nn.Module)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Compute what is inside in the precision of its tensors, whatever autocast says around it."""
    name = device.type
    return torch.autocast(name, enabled=False) if torch.amp.is_autocast_available(name) else nullcontext()


def in_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Give the context that networks alone run in; what is computed from their outputs stays in fp32."""
    return torch.autocast(device.type, _HALF[precision]) if precision in _HALF else nullcontext()


def finished_precision(trained: Precision, device: torch.device) -> Precision:
    """Choose what a finished encoder computes in: what it was trained in, on an accelerator that has it, else fp32."""
    if device.type != "cuda":
        return "fp32"
    has_it = trained != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return trained if has_it else "fp32"


def has_channels_last(precision: Precision, device: torch.device) -> bool:
    """Tell whether kernels lie with their channels last, as an accelerator's matrix units take them."""
    return device.type == "cuda" and precision != "fp32"


def placed(network: Network, precision: Precision, device: torch.device) -> Network:
    """Put a network on a device, its kernels as the device takes them."""
    if has_channels_last(precision, device):
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    return network.to(device)


@contextmanager
def accelerator_settings(precision: Precision, device: torch.device, *, has_one_shape: bool = False) -> Iterator[None]:
    """Set inside, for the whole process, how an accelerator computes in 32 bits; other devices have no such settings.

    Torch lets convolutions round to TF32 and matrix products not; here both do with `tf32` alone.

    Args:
        precision: Precision of the networks.
        device: Where they compute.
        has_one_shape: Whether nearly all batches have one shape, so that it pays to try which convolution is fastest.
    """
    if device.type != "cuda":
        yield
        return
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cublas.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        cublas.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
        cudnn.benchmark = has_one_shape
        yield
    finally:
        cublas.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
