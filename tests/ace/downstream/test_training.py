"""One step of fine-tuning, taken as a whole or in parts, by a network with the task's stochastic depth."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import ace.zoo
from ace.downstream.images import LabelledBatch
from ace.downstream.training import FinetuneState, FinetuneStep, with_drop_path
from ace.embed.encoder import load_encoder
from ace.engine.optimizer import build_optimizer
from shards.core.normalisation import Normalisation
from tests.ace.downstream.labelled import task
from tests.ace.evaluation.drawn_project import BACKBONE, write_model

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
        network=network,
        optimizer=build_optimizer(network, own.params.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    encoder = SimpleNamespace(device=torch.device("cpu"), normalisation=lambda batch: Normalisation((0.5,), (0.25,)))
    images = StandIn(encoder=encoder, part=SimpleNamespace(index=SimpleNamespace(name="b")))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 1, 4, 4), generator=generator, dtype=torch.uint8)
    batch = LabelledBatch(
        images=pixels,
        targets=torch.tensor([[1.0, 0, 1]] * 2 + [[0.0, 1, 0]] * 2),
        known=torch.tensor(known),
        keys=list("abcd"),
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


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("own", [0.0, 0.2, None])
def test_stochastic_depth_is_the_tasks_whatever_the_encoders_was_and_changes_no_answer(
    own: float | None, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of models that were trained with some and without, and of one whose tokens are whitened."""
    folder = Path(ace.zoo.__file__).parent / "cxr-small"
    if own is not None:
        monkeypatch.setitem(BACKBONE, "drop_path", own)
        folder = tmp_path / "model"
        write_model(folder, seed=0)
    loaded = load_encoder(folder, device="cpu")
    assert loaded.backbone.is_whitened == (own is None)
    found = with_drop_path(loaded, rate)
    rates = [module.drop_prob for module in found.backbone.modules() if isinstance(module, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(rate)
    images = torch.rand(2, 1, loaded.input_px, loaded.input_px)
    with torch.no_grad():
        assert torch.equal(found.backbone(images), loaded.backbone(images))
    weights = found.backbone.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in loaded.backbone.state_dict().items())
