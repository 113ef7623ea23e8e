"""From pictures to embeddings: E0(x), the mean of the backbone's tokens, and E(x), its direction (method.md §5)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ace.embed.encoder import Encoder
from ace.embed.preprocessing import normalized
from ace.models.backbone import mean_token
from ace.models.precision import in_precision
from shards.core.canvas import Pixels, with_channels
from shards.runtime.progress import progress_bar

Image = Pixels


@dataclass(frozen=True, kw_only=True)
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
        """Compute the tokens of crops, in order, `images_per_forward` crops at a time; fp32, on the device."""
        encoder, normalisation = self.encoder, self.encoder.normalisation(self.batch)
        remaining = iter(crops)
        while chunk := list(islice(remaining, self.images_per_forward)):
            images = np.stack([with_channels(crop, encoder.in_channels) for crop in chunk])
            yield tokens_of(encoder, normalized(images, normalisation, encoder.device))

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


def tokens_of(encoder: Encoder, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch t t dim"]:
    """Run the backbone on normalised images; every embedding is made of these tokens, which are fp32.

    Args:
        encoder: The model.
        images: On its device; of another size than `encoder.input_px` they are resampled to it, antialiased where they
            shrink, so that t × t cells give t × t tokens whatever the model's stride is.
    """
    size_px = (encoder.input_px, encoder.input_px)
    with torch.inference_mode():
        if images.shape[-2:] != size_px:
            images = F.interpolate(images, size_px, mode="bilinear", antialias=True)
        with in_precision(encoder.precision, encoder.device):
            tokens: Tensor = encoder.backbone(images).float()
    return tokens


def embedding_of(tokens: Float[Tensor, "batch t t dim"]) -> Float[Tensor, "batch dim"]:
    """E(x): the direction of the mean token; a mean of 0 stays 0."""
    return F.normalize(mean_token(tokens), dim=-1)


def pool(tokens: Float[Tensor, "batch t t dim"]) -> Float[np.ndarray, "batch dim"]:
    """E0 of each crop of a forward pass, for arithmetic on embeddings; `unit` makes E of it."""
    means: Float[np.ndarray, "batch dim"] = mean_token(tokens).cpu().numpy()
    return means


def unit(vectors: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """Return the vectors' directions; a vector of length 0 stays 0, so that its cosine with anything is 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions = np.zeros_like(vectors)
    np.divide(vectors, lengths, out=directions, where=lengths > 0)
    return directions
