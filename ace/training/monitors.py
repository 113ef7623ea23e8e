"""Collapse monitors: a healthy encoder keeps its features spread over many directions."""

import torch
from jaxtyping import Float
from torch import Tensor


def feature_std(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean standard deviation of the normalised features' dimensions times sqrt(dim): 1 isotropic, 0 collapsed."""
    normalised = torch.nn.functional.normalize(features, dim=-1)
    spread: Tensor = normalised.std(dim=0).mean() * features.shape[-1] ** 0.5
    return spread


def effective_rank(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the centred features' singular values, at most min(batch, dim) (Roy 2007)."""
    singular_values = torch.linalg.svdvals((features - features.mean(dim=0)).float())
    p = singular_values / singular_values.sum().clamp_min(1e-12)
    rank: Tensor = torch.special.entr(p).sum().exp()
    return rank


def mean_entropy(logits: Float[Tensor, "batch out"]) -> Float[Tensor, ""]:
    """Mean entropy in nats of the distributions softmax(logits): log(out) when uniform, 0 when one-hot."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()
