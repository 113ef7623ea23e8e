"""A linear map that takes out of tokens what changes with scale (Hatch et al., Interspeech 2006; docs/method.md).

The two crops of a pair show the same anatomy in their overlap, the fine one larger. What their mean tokens differ by is
an error of composition; the map shortens the directions in which this error is large.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import torch
from jaxtyping import Float
from torch import Tensor

from ace.data.batches import PairBatch
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.engine.stop import StoppedError, StopRequest
from ace.geometry.overlap import overlap_masks
from ace.models.backbone import Backbone
from ace.models.folder import Which
from ace.models.networks import overlap_mean
from ace.pretrain.params import PretrainParams
from shards.core.grid import GridSpec
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex
from shards.runtime.progress import progress

_STEP_PAIRS = 16


def fit_whitening(
    backbones: Mapping[Which, Backbone],
    members: Sequence[tuple[ShardIndex, MixParams]],
    spec: GridSpec,
    params: PretrainParams,
    device: torch.device,
    request: StopRequest | None = None,
) -> dict[Which, Float[Tensor, "dim dim"]]:
    """Fit the map of each backbone's tokens on unaugmented crop pairs of the training images.

    Args:
        backbones: In evaluation mode, on the device, without a map.
        members: Shard sets of the training and how it mixes them.
        spec: Grid of the pairs.
        params: Section `pretrain`; `whitening` says how many pairs and how much shrinkage.
        device: Where tokens are computed; the maps lie on the CPU.
        request: Ends the fit early.

    Raises:
        StoppedError: asked to end before the last pair.
    """
    assert params.whitening is not None
    # In float64, in which the small eigenvalues that decide the map are exact; not every accelerator has it.
    errors = {
        name: torch.zeros(backbone.width, backbone.width, dtype=torch.float64) for name, backbone in backbones.items()
    }
    for batch in _pairs(members, spec, params):
        if request is not None and request.reason is not None:
            raise StoppedError(
                f"{request.reason}: all steps are trained and saved, and the whitening is not fitted yet; the same "
                "command goes on from there"
            )
        batch = batch.to(device)
        of_fine, of_coarse = overlap_masks(batch.coarse_origin, batch.fine_origin, t=spec.t, k=batch.k, l=batch.l)
        for name, backbone in backbones.items():
            with torch.inference_mode():
                coarse, fine = backbone(torch.cat(batch.whole())).chunk(2)
                means = overlap_mean(coarse, of_coarse).cpu().double(), overlap_mean(fine, of_fine).cpu().double()
                difference = means[0] - means[1]
                errors[name] += difference.T @ difference
    return {name: whitening_map(error, params.whitening.shrinkage).float() for name, error in errors.items()}


def whitening_map(error: Float[Tensor, "dim dim"], shrinkage: float) -> Float[Tensor, "dim dim"]:
    """`((1 − s)·S + s·tr(S)/dim·I)^(−1/2)`, divided by its largest eigenvalue; the identity where S is 0.

    Args:
        error: S, the second moment of the differences, in float64.
        shrinkage: s, above 0; 1 gives the identity.
    """
    width = len(error)
    mean = error.trace() / width
    identity = torch.eye(width, dtype=error.dtype, device=error.device)
    if mean <= 0:
        return identity
    values, vectors = torch.linalg.eigh(error)
    # Rounding makes eigenvalues of 0 negative, which a small shrinkage would not outweigh.
    values = (1 - shrinkage) * values.clamp_min(0) + shrinkage * mean
    weight: Tensor = vectors * (values / values.min()).rsqrt() @ vectors.T
    return weight


def _pairs(
    members: Sequence[tuple[ShardIndex, MixParams]], spec: GridSpec, params: PretrainParams
) -> Iterator[PairBatch]:
    """Batches of the crop pairs that `ace` would draw in an epoch of its own, resampled and nothing more."""
    assert params.whitening is not None
    dataset = CropDataset(
        members,
        spec,
        objective="ace",
        views=params.views,
        crops="fresh",
        augment=None,
        in_channels=params.backbone.in_channels,
        seed=params.seed,
    )
    size = min(_STEP_PAIRS, params.batch_size)  # a training set has a batch at least
    sampler = StepSampler(dataset, batch_size=size, rank=0, world_size=1, first_step=0, epochs=params.epochs)
    num_steps = min(math.ceil(params.whitening.num_pairs / size), sampler.num_steps)
    with closing(iter(build_loader(sampler, num_workers=0, is_pinned=False))) as batches:
        for _ in progress(range(num_steps), total=num_steps, description="whitening", unit="step"):
            yield next(batches)
