"""The benchmarks compare equal work: the plain trainer learns what ours learns."""

import numpy as np
import pytest
import torch

from ace.data.batches import CropPairItem, PairBatch, collate
from ace.engine.schedules import cosine, warmup_cosine
from ace.geometry.targets import composition_target, decomposition_target
from ace.pretrain.pretrain import build_state
from benchmarks.reference import targets
from benchmarks.reference.straightforward import Straightforward
from shards.core.grid import GridSpec, Scale, draw_crop_pair
from shards.core.normalisation import Normalisation
from tests.ace.pretrain.conftest import tiny_grid, tiny_params
from tests.ace.pretrain.synthetic import step_of

STEPS_PER_EPOCH = 10


@pytest.mark.parametrize(("k", "l"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_targets_built_on_the_host_are_ours(k: int, l: int) -> None:
    spec = GridSpec(n=16, cell_px=1, t=6, scales=(Scale(k, l, 1.0),), min_overlap=0.0, min_jitter_area=1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        origins = torch.tensor([pair.coarse]), torch.tensor([pair.fine])
        for build, name in ((decomposition_target, "decomposition"), (composition_target, "composition")):
            ours = build(*origins, t=spec.t, k=k, l=l).dense()[0]
            for kind in ("looped", "vectorised"):
                theirs = getattr(targets, f"{kind}_{name}")(pair.coarse, pair.fine, spec.t, k, l)
                torch.testing.assert_close(torch.from_numpy(theirs), ours)


def random_batch(spec: GridSpec, size: int, rng: np.random.Generator) -> PairBatch:
    shown = np.ones((spec.t, spec.t), dtype=np.float32)
    items = []
    for number in range(size):
        coarse, fine = (rng.integers(0, 256, (spec.crop_px, spec.crop_px), dtype=np.uint8) for _ in range(2))
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        items.append(
            CropPairItem(
                coarse=coarse,
                fine=fine,
                pair=pair,
                normalisation=Normalisation.of(0.5, 0.25),
                key=str(number),
                coarse_shown=shown,
                fine_shown=shown,
            )
        )
    return collate(items)


def test_the_plain_trainer_has_our_weights_teacher_and_centre_after_several_steps() -> None:
    grid = tiny_grid(t=4, n=12)
    values = tiny_params().model_dump(by_alias=True)
    params = tiny_params(
        backbone={**values["backbone"], "drop_path": 0.0},
        local_head={"form": "mlp", "hidden_dim": 16},
        composer="mlp",
        decomposer="mlp",
        loss_weights={"global": 0.1, "decomposition": 0.5, "composition": 0.5, "removal": 0.0},
        global_loss={**values["global_loss"], "frozen_last_layer_epochs": 0},
        matching_loss={
            "alpha_decomposition": 0.99,
            "alpha_composition": 0.9,
            "logits": {"scale": 14.0, "bias": 0.0, "learnable": False},
        },
    )
    torch.manual_seed(0)
    state = build_state(params, grid, torch.device("cpu"))
    state.student.train()
    plain = Straightforward(state.student, params, t=grid.t, scale=(2, 2))
    rng, num_steps = np.random.default_rng(0), params.epochs * STEPS_PER_EPOCH
    for step in range(4):
        batch = random_batch(grid.spec, 4, rng)
        expected = plain.loss(batch)[0].item()
        plain.step(
            batch,
            lr=warmup_cosine(params.lr, params.min_lr, step, num_steps, params.warmup_epochs * STEPS_PER_EPOCH),
            weight_decay=cosine(params.weight_decay, params.weight_decay_end, step, num_steps),
            momentum=cosine(params.momentum, params.momentum_end, step, num_steps),
            precision=torch.float32,
        )
        outcome = step_of(state, params, grid.t, steps_per_epoch=STEPS_PER_EPOCH)(batch)
        assert float(outcome.values["loss"]) == pytest.approx(expected, rel=1e-4)
    close = {"atol": 2e-5, "rtol": 1e-3}
    for ours, theirs in ((state.student, plain.student), (state.teacher, plain.teacher)):
        for name in ("backbone", "local_head"):
            for (key, mine), other in zip(
                getattr(ours, name).named_parameters(), getattr(theirs, name).parameters(), strict=True
            ):
                torch.testing.assert_close(other, mine, **close, msg=lambda text, key=key: f"{key}: {text}")
        torch.testing.assert_close(
            theirs.last_layer.parametrizations.weight.original1, ours.global_head.last_layer.weight, **close
        )
    for name in ("composers", "decomposers"):
        for mine, other in zip(
            getattr(state.student, name)["2x2"].parameters(),
            getattr(plain.student, name.removesuffix("s")).parameters(),
            strict=True,
        ):
            torch.testing.assert_close(other, mine, **close)
    torch.testing.assert_close(plain.center, state.center, **close)
