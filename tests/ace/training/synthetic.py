"""Batches of noise and the loss of a state on them, without shards or a loader."""

import numpy as np
import torch

from ace.data.augmentation import AS_IT_IS
from ace.data.batches import CropPairItem, PairBatch, ViewBatch, ViewItem, collate
from ace.models.encoder import default_device
from ace.training.objective import StepResult, compute_loss, count_valid
from ace.training.params import PretrainParams
from ace.training.state import TrainState
from shards.grid import GridSpec, Scale, draw_crop_pair


def pair_batch(
    spec: GridSpec, scale: Scale, rng: np.random.Generator, *, size: int = 4, share_erased: float = 0.0
) -> PairBatch:
    """Crop pairs of one scale; each token is erased (for the bookkeeping, not in the pixels) with this probability."""
    items = []
    for number in range(size):
        crops = rng.integers(0, 256, (2, spec.crop_px, spec.crop_px), dtype=np.uint8)
        visible = rng.random((2, spec.t, spec.t)) >= share_erased
        pair = draw_crop_pair(spec, scale, rng)
        items.append(CropPairItem(*crops, pair, 0.5, 0.25, f"noise-{number}", *visible))
    return collate(items).to(default_device())


def view_batch(
    spec: GridSpec,
    rng: np.random.Generator,
    *,
    num_views: int = 2,
    num_teacher_views: int = 2,
    size: int = 4,
    share_erased: float = 0.0,
) -> ViewBatch:
    """Views, erased as those of `pair_batch`."""
    items = []
    for number in range(size):
        views = rng.integers(0, 256, (num_views, spec.crop_px, spec.crop_px), dtype=np.uint8)
        visible = rng.random((num_views, spec.t, spec.t)) >= share_erased
        augmentations = [AS_IT_IS] * num_views
        values = (num_teacher_views, 0.5, 0.25, f"noise-{number}")
        items.append(ViewItem(list(views), list(visible), augmentations, *values))
    return collate(items).to(default_device())


def loss_on(
    state: TrainState,
    batch: PairBatch | ViewBatch,
    params: PretrainParams,
    t: int,
    *,
    student: torch.nn.Module | None = None,
    num_valid: torch.Tensor | None = None,
    share: float = 1.0,
) -> StepResult:
    """`compute_loss` of the plain student, or of its wrapper, with the whole batch as default."""
    return compute_loss(
        student or state.student,
        state.teacher,
        batch,
        state.center,
        params,
        t=t,
        teacher_temperature=0.04,
        logit_scales=state.student,
        num_valid=count_valid(batch, t) if num_valid is None else num_valid,
        share=share,
    )
