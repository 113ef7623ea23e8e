"""One step of fine-tuning, taken as a whole or in parts."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ace.downstream.images import LabelledBatch
from ace.downstream.training import FinetuneState, FinetuneStep
from ace.engine.optimizer import build_optimizer
from shards.core.normalisation import Normalisation
from tests.ace.downstream.labelled import task

KNOWN = [[True, True, True], [True, False, False], [False, False, False], [True, True, False]]
"""Of four images and three labels: the halves of the batch know four and two."""


@dataclass
class StandIn:
    """What a step asks of the images that it trains on."""

    seed: int = 0
    steps_per_epoch: int = 10
    encoder: Any = None
    part: Any = None


def weights_after(num_micro_batches: int, known: list[list[bool]] = KNOWN) -> tuple[torch.Tensor, float]:
    own = task(labels=["a", "b", "c"], methods=["full"], training={"num_micro_batches": num_micro_batches})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    state = FinetuneState(
        network, build_optimizer(network, own.params.training), torch.amp.GradScaler("cpu", enabled=False)
    )
    encoder = SimpleNamespace(device=torch.device("cpu"), normalisation=lambda batch: Normalisation((0.5,), (0.25,)))
    images = StandIn(encoder=encoder, part=SimpleNamespace(index=SimpleNamespace(name="b")))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 1, 4, 4), generator=generator, dtype=torch.uint8)
    batch = LabelledBatch(
        pixels, torch.tensor([[1.0, 0, 1]] * 2 + [[0.0, 1, 0]] * 2), torch.tensor(known), list("abcd")
    )
    outcome = FinetuneStep(state, own, images)(batch, is_logged=True, is_stop_wanted=False)
    gradient = torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
    return gradient, outcome.values["loss"]


@pytest.mark.parametrize("num_parts", [2, 3, 4])
def test_a_step_in_parts_is_the_step_of_the_whole_batch_however_much_each_part_knows(num_parts: int) -> None:
    gradient, loss = weights_after(1)
    parts, sum_of_parts = weights_after(num_parts)
    torch.testing.assert_close(parts, gradient, rtol=1e-5, atol=1e-7)
    assert sum_of_parts == pytest.approx(loss, rel=1e-6)


def test_a_batch_that_knows_nothing_has_no_loss_and_no_gradient() -> None:
    gradient, loss = weights_after(2, [[False] * 3] * 4)
    assert loss == 0
    assert not gradient.any()
