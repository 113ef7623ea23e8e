"""A linear map that takes out of tokens what changes with scale (Hatch et al., Interspeech 2006; docs/method.md).

The two crops of a pair show the same anatomy in their overlap, the fine one larger. What their mean tokens differ by is
an error of composition; the map shortens the directions in which this error is large.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ace.data.batches import PairBatch
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.geometry.overlap import overlap_masks
from ace.models.backbone import Backbone
from ace.models.encoder import Which
from ace.models.networks import overlap_mean
from ace.training.params import PretrainParams
from shards.grid import GridSpec
from shards.params import MixParams
from shards.progress import progress
from shards.read import ShardIndex

_STEP_PAIRS = 16


@dataclass(frozen=True)
class Whitening:
    """The map of one backbone, and what it does to the pairs that it was fitted on.

    Attributes:
        weight: Symmetric, positive definite; its largest eigenvalue is 1.
        num_pairs: Crop pairs that it was fitted on.
        error_before: Composition error of tokens as they are: mean squared difference of the two overlaps' mean tokens
            over their mean squared length.
        error_after: The same of mapped tokens.
    """

    weight: Float[Tensor, "dim dim"]
    num_pairs: int
    error_before: float
    error_after: float

    def account(self) -> dict[str, float]:
        """What config.json says of it."""
        return {"num_pairs": self.num_pairs, "error_before": self.error_before, "error_after": self.error_after}


def fit_whitening(
    backbones: Mapping[Which, Backbone],
    members: Sequence[tuple[ShardIndex, MixParams]],
    spec: GridSpec,
    params: PretrainParams,
    device: torch.device,
) -> dict[Which, Whitening]:
    """The map of each backbone, fitted on unaugmented crop pairs of the training images.

    Args:
        backbones: In evaluation mode, on the device, without a map.
        members: Shard sets of the training and how it mixes them.
        spec: Grid of the pairs.
        params: Section `pretrain`; `whitening` says how many pairs and how much shrinkage.
        device: Where it is computed.
    """
    assert params.whitening is not None
    sums = {name: _Sums.zero(backbone.width, device) for name, backbone in backbones.items()}
    num_pairs = 0
    for batch in _pairs(members, spec, params):
        batch = batch.to(device)
        of_fine, of_coarse = overlap_masks(batch.coarse_origin, batch.fine_origin, t=spec.t, k=batch.k, l=batch.l)
        for name, backbone in backbones.items():
            with torch.inference_mode():
                coarse, fine = backbone(torch.cat(batch.whole())).chunk(2)
                sums[name].add(overlap_mean(coarse, of_coarse).double(), overlap_mean(fine, of_fine).double())
        num_pairs += len(batch)
    found = {}
    for name, moments in sums.items():
        weight = whitening_map(moments.error, params.whitening.shrinkage)
        before, after = moments.relative_error(), moments.mapped(weight).relative_error()
        found[name] = Whitening(weight.float(), num_pairs, before, after)
    return found


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
    values, vectors = torch.linalg.eigh((1 - shrinkage) * error + shrinkage * mean * identity)
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


@dataclass(frozen=True)
class _Sums:
    """Second moments over pairs, in float64: the map rests on small differences of nearly equal means.

    Attributes:
        error: Of the differences of the two overlaps' mean tokens.
        tokens: Of the mean tokens themselves, averaged over the two crops.
    """

    error: Float[Tensor, "dim dim"]
    tokens: Float[Tensor, "dim dim"]

    @classmethod
    def zero(cls, width: int, device: torch.device) -> "_Sums":
        error, tokens = torch.zeros(2, width, width, dtype=torch.float64, device=device)
        return cls(error, tokens)

    def add(self, coarse: Float[Tensor, "batch dim"], fine: Float[Tensor, "batch dim"]) -> None:
        difference = coarse - fine
        self.error.add_(difference.T @ difference)
        self.tokens.add_((coarse.T @ coarse + fine.T @ fine) / 2)

    def mapped(self, weight: Float[Tensor, "dim dim"]) -> "_Sums":
        return _Sums(weight @ self.error @ weight.T, weight @ self.tokens @ weight.T)

    def relative_error(self) -> float:
        return float(self.error.trace() / self.tokens.trace())
