"""Compute EfficientNet-Lite0 (Tan & Le, ICML 2019) independently, from its table of blocks.

The Lite variant drops squeeze-and-excitation and takes ReLU6. It is one function of the tensors, in the naming of
`efficientnet_pytorch`, with TensorFlow's padding.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-3
BLOCKS = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
"""(kernel, stride of the first block, number of blocks) of each stage."""


def same(image: Tensor, kernel: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    """Convolve with TensorFlow's padding: ceil(size / stride) outputs, an odd pixel of padding at the end."""
    padding = []
    for size, width in zip(reversed(image.shape[2:]), reversed(kernel.shape[2:]), strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.conv2d(F.pad(image, padding), kernel, None, stride, 0, dilation, groups)


def features(weights: Mapping[str, Tensor], images: Tensor, *, output_stride: int = 32) -> Tensor:
    """The map before pooling [batch, 1280, rows, cols]; float64 throughout.

    Beyond `output_stride` a stride is left out, and later kernels are dilated by it instead.
    """
    tensors = {key: value.double() for key, value in weights.items()}

    def norm(values: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            tensors[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / torch.sqrt(var + EPSILON) * scale + shift

    def relu6(values: Tensor) -> Tensor:
        return values.clamp(0, 6)

    values = relu6(norm(same(images.double(), tensors["_conv_stem.weight"], stride=2), "_bn0"))
    reached, dilation, number = 2, 1, 0
    for _, first_stride, repeats in BLOCKS:
        for repeat in range(repeats):
            name, entering = f"_blocks.{number}", values
            stride = first_stride if repeat == 0 else 1
            used = stride if reached * stride <= output_stride else 1
            if f"{name}._expand_conv.weight" in tensors:
                values = relu6(norm(same(values, tensors[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
            kernel = tensors[f"{name}._depthwise_conv.weight"]
            values = same(values, kernel, stride=used, dilation=dilation, groups=len(kernel))
            values = relu6(norm(values, f"{name}._bn1"))
            values = norm(same(values, tensors[f"{name}._project_conv.weight"]), f"{name}._bn2")
            if stride == 1 and values.shape == entering.shape:
                values = values + entering
            reached, dilation, number = reached * used, dilation * stride // used, number + 1
    return relu6(norm(same(values, tensors["_conv_head.weight"]), "_bn1"))


def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Scores of the 1,000 classes of ImageNet."""
    pooled = features(weights, images).mean((2, 3))
    return pooled @ weights["_fc.weight"].double().T + weights["_fc.bias"].double()
