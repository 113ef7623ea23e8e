"""What a device is told for each precision; what it makes of it needs one (tests/ace/pretrain/test_gpu.py)."""

import pytest
import torch
from torch import nn

from ace.models.precision import (
    Precision,
    accelerator_settings,
    finished_precision,
    has_channels_last,
    in_precision,
    placed,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PRECISIONS: list[Precision] = ["fp32", "tf32", "bf16", "fp16"]


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_accelerator_rounds_all_products_to_tf32_or_none_and_everything_is_put_back(precision: Precision) -> None:
    before = settings()
    with accelerator_settings(precision, CUDA, has_one_shape=True):
        assert settings() == (precision == "tf32", precision == "tf32", True)
    assert settings() == before
    with accelerator_settings(precision, CUDA):
        assert settings() == (precision == "tf32", precision == "tf32", False)
    with accelerator_settings(precision, CPU, has_one_shape=True):
        assert settings() == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_finished_encoder_computes_in_fp32_on_the_cpu(precision: Precision) -> None:
    assert finished_precision(precision, CPU) == "fp32"


def test_networks_have_their_channels_last_where_an_accelerator_has_units_for_it() -> None:
    assert [has_channels_last(precision, CUDA) for precision in PRECISIONS] == [False, True, True, True]
    assert not any(has_channels_last(precision, CPU) for precision in PRECISIONS)
    layer = placed(nn.Conv2d(3, 4, 2), "bf16", CPU)
    assert layer.weight.is_contiguous()


def test_products_are_in_half_precision_where_it_says_so() -> None:
    found = []
    for precision in PRECISIONS:
        with in_precision(precision, CPU):
            found.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert found == [torch.float32, torch.float32, torch.bfloat16, torch.float16]
