"""Batches of noise and the loss of a state on them, without shards or a loader."""

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from ace.data.augmentation import AS_IT_IS
from ace.data.batches import CropPairItem, PairBatch, ViewBatch, ViewItem, collate
from ace.data.erase import partners
from ace.engine.ranks import ALONE, Ranks
from ace.models.device import default_device
from ace.pretrain.objective import BatchTotals, Objective, StepContext, StepResult
from ace.pretrain.params import PretrainParams
from ace.pretrain.state import TrainState
from ace.pretrain.step import PretrainStep
from shards.core.grid import CropPair, GridSpec, Scale, draw_crop_pair
from shards.core.normalisation import Normalisation

AnyBatch = TypeVar("AnyBatch", PairBatch, ViewBatch)


def pair_batch(
    spec: GridSpec, scale: Scale, rng: np.random.Generator, *, size: int = 4, share_erased: float = 0.0
) -> PairBatch:
    """Crop pairs of one scale; each token is erased with this probability, in the pixels too."""
    items = []
    for number in range(size):
        crops = rng.integers(0, 256, (2, spec.crop_px, spec.crop_px), dtype=np.uint8)
        shown = draw_shown(rng, 2, spec.t, share_erased)
        pair = draw_crop_pair(spec, scale, rng)
        items.append(noise_item(number, crops, pair, shown))
    return with_blackened(collate(items)).to(default_device())


def noise_item(number: int, crops: np.ndarray, pair: CropPair, shown: np.ndarray) -> CropPairItem:
    """Make the item of two crops, coarse and fine, and of the shares of their tokens that are shown."""
    return CropPairItem(
        coarse=crops[0],
        fine=crops[1],
        pair=pair,
        normalisation=Normalisation.of(0.5, 0.25),
        key=f"noise-{number}",
        coarse_shown=shown[0],
        fine_shown=shown[1],
    )


def view_batch(
    spec: GridSpec,
    rng: np.random.Generator,
    *,
    num_views: int = 2,
    num_teacher_views: int = 2,
    size: int = 4,
    share_erased: float = 0.0,
) -> ViewBatch:
    """Views, erased as the crops of `pair_batch`."""
    items = []
    for number in range(size):
        views = rng.integers(0, 256, (num_views, spec.crop_px, spec.crop_px), dtype=np.uint8)
        shown = draw_shown(rng, num_views, spec.t, share_erased)
        items.append(
            ViewItem(
                views=list(views),
                shown=list(shown),
                augmentations=[AS_IT_IS] * num_views,
                num_teacher_views=num_teacher_views,
                normalisation=Normalisation.of(0.5, 0.25),
                key=f"noise-{number}",
            )
        )
    return with_blackened(collate(items)).to(default_device())


def draw_shown(rng: np.random.Generator, num_crops: int, t: int, share_erased: float) -> np.ndarray:
    """Shares of tokens [crops, t, t] in quarters: a token is erased, at most half of it shown, with this probability.

    Above 0 some crops are left whole and visible tokens may lack a quarter; at 1 all tokens are erased.
    """
    is_erased = rng.random((num_crops, t, t)) < share_erased
    erased, visible = (rng.choice(shares, is_erased.shape) for shares in ((0, 0.25, 0.5), (0.75, 1, 1, 1)))
    shown = np.where(is_erased, erased, visible)
    is_whole = rng.random(num_crops) < (1.0 if share_erased == 0 else 0.25 * (share_erased < 1))
    shown[is_whole] = 1.0
    return shown.astype(np.float32)


def with_blackened(batch: AnyBatch) -> AnyBatch:
    """The batch whose erased crops lack, of each token, the first rows of pixels, as many as its share says."""
    whole = batch.views if isinstance(batch, ViewBatch) else torch.stack([batch.coarse, batch.fine], 1)
    shown = torch.stack(batch.shown(), 1)
    t = round(shown.shape[-1] ** 0.5)
    cell_px = whole.shape[-1] // t
    rows = torch.arange(cell_px, device=whole.device)[:, None] >= cell_px * (1 - shown.unflatten(-1, (t, 1, t)))
    is_shown = rows.flatten(2, 3).repeat_interleave(cell_px, -1)[:, :, None]
    return replace(batch, erased=torch.where(is_shown, whole, 0))


def with_tissue(batch: AnyBatch, rng: np.random.Generator) -> AnyBatch:
    """The batch, blackened, with the partner's pixels in most of the crops where they were black."""
    assert batch.erased is not None
    whole = batch.views if isinstance(batch, ViewBatch) else torch.stack([batch.coarse, batch.fine], 1)
    donated = torch.from_numpy(rng.random(whole.shape[:2]) < 0.6).to(whole.device)
    is_filled = donated[:, :, None, None, None] & (batch.erased == 0)
    return replace(batch, erased=torch.where(is_filled, whole[partners(len(batch))], batch.erased), donated=donated)


def totals_on(state: TrainState, batch: PairBatch | ViewBatch, params: PretrainParams, t: int) -> BatchTotals:
    """`Objective.totals` of a batch that is not divided."""
    objective = Objective.of(params, t)
    return objective.totals(batch, [objective.teach(state.teacher, batch)], 1)


def loss_on(
    state: TrainState,
    batch: PairBatch | ViewBatch,
    params: PretrainParams,
    t: int,
    *,
    student: torch.nn.Module | None = None,
    totals: BatchTotals | None = None,
    share: float = 1.0,
) -> StepResult:
    """`Objective.loss` of the plain student, or of its wrapper, with the whole batch as default."""
    objective, totals = Objective.of(params, t), totals or totals_on(state, batch, params, t)
    context = StepContext(
        center=state.center, teacher_temperature=0.04, scales=state.student, totals=totals, share=share
    )
    return objective.loss(student or state.student, batch, objective.teach(state.teacher, batch), context)


def step_of(
    state: TrainState,
    params: PretrainParams,
    t: int,
    *,
    steps_per_epoch: int = 10,
    learner: torch.nn.Module | None = None,
    ranks: Ranks = ALONE,
) -> PretrainStep:
    """The step of the plain student, or of its wrapper."""
    return PretrainStep(
        state=state,
        learner=learner or state.student,
        params=params,
        objective=Objective.of(params, t),
        steps_per_epoch=steps_per_epoch,
        ranks=ranks,
    )
