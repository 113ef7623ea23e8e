"""From pictures to embeddings: E0(x), the mean of the backbone's tokens, and E(x), its direction (method.md §5)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ace.data.normalise import normalised
from ace.models.precision import Precision, in_precision
from shards.canvas import Pixels, with_channels
from shards.grid import GridSpec
from shards.normalisation import Normalisation
from shards.runtime.progress import progress_bar

Image = Pixels


class Encoder(Protocol):
    """What the analyses need of a model: a backbone that turns normalised crops into tokens [B, t, t, D]."""

    @property
    def backbone(self) -> nn.Module: ...  # noqa: D102
    @property
    def spec(self) -> GridSpec: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def in_channels(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102

    def normalisation(self, batch: str) -> Normalisation:
        """Return the normalisation of one batch of shards, for pixels in [0, 1]."""
        ...


@dataclass(frozen=True)
class Embedder:
    """An encoder applied to crops of one batch of shards.

    Attributes:
        encoder: The model.
        batch: Name of the batch, which decides the normalisation.
        images_per_forward: Crops in one forward pass.
        name: What progress bars call it, as `trained`.
    """

    encoder: Encoder
    batch: str
    images_per_forward: int
    name: str

    def tokens(self, crops: Iterable[Image]) -> Iterator[Float[Tensor, "batch t t dim"]]:
        """The backbone's tokens of each crop, in order, `images_per_forward` crops at a time; fp32, on the device."""
        encoder, normalisation = self.encoder, self.encoder.normalisation(self.batch)
        remaining = iter(crops)
        while chunk := list(islice(remaining, self.images_per_forward)):
            crops = np.stack([with_channels(crop, encoder.in_channels) for crop in chunk])
            with torch.inference_mode(), in_precision(encoder.precision, encoder.device):
                tokens = encoder.backbone(normalised(crops, normalisation, encoder.device)).float()
            yield tokens

    def shown_tokens(
        self, crops: Iterable[Image], *, total: int, task: str
    ) -> Iterator[Float[Tensor, "batch t t dim"]]:
        """Yield what `tokens` does, with a progress bar of `total` crops that is called `task`."""
        with progress_bar(total=total, description=f"{task}, {self.name}", unit="crop") as bar:
            for tokens in self.tokens(crops):
                yield tokens
                bar.update(len(tokens))

    def pooled(self, crops: Iterable[Image], *, total: int, task: str) -> Float[np.ndarray, "crops dim"]:
        """E0 of each crop: the mean over its tokens, not normalised; `total` and `task` are for the progress bar."""
        return np.concatenate([pool(tokens) for tokens in self.shown_tokens(crops, total=total, task=task)])


def pool(tokens: Float[Tensor, "batch t t dim"]) -> Float[np.ndarray, "batch dim"]:
    """E0 of each crop of a forward pass: the mean over its tokens."""
    means: Float[np.ndarray, "batch dim"] = tokens.mean(dim=(1, 2)).cpu().numpy()
    return means


def unit(vectors: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """The vectors' directions; a vector of length 0 stays 0, so that its cosine with anything is 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions = np.zeros_like(vectors)
    np.divide(vectors, lengths, out=directions, where=lengths > 0)
    return directions
