"""A trained model that turns images into embeddings and token maps."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ace.embed.embedder import embedding_of, tokens_of
from ace.embed.encoder import Encoder, load_encoder
from ace.embed.preprocessing import Choice, Preprocessing, preprocessing_of
from ace.inference.images import ImageInput, ImageInputError, to_pixels
from ace.models.folder import WEIGHTS, Which
from ace.models.model_config import ModelConfig
from ace.zoo.shipped import find_model
from shards.core.canvas import Canvas
from shards.core.errors import ConfigError
from shards.core.normalisation import as_written
from shards.core.params import MeasuredParams
from shards.format.layout import sha256_of

BATCH_SIZE = 32


@dataclass(frozen=True)
class Embeddings:
    """Embeddings are of one image, or of several along the first dimension; float32 on the CPU.

    Attributes:
        embedding: E(x), the direction of the mean token: norm 1 (method.md §5).
        tokens: The backbone's tokens after its last norm and token activation, in rows and columns of the image; None
            where they were not asked for.
    """

    embedding: Float[Tensor, "*batch dim"]
    tokens: Float[Tensor, "*batch rows cols dim"] | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingModel:
    """A trained encoder with the preprocessing it needs.

    Attributes:
        encoder: The network, in evaluation mode, on its device.
        preprocessing: What images pass first.
        folder: Where the model was read from.
        which: The network of the model.
    """

    encoder: Encoder
    preprocessing: Preprocessing
    folder: Path
    which: Which

    @property
    def config(self) -> ModelConfig:
        """config.json of the model."""
        assert self.encoder.config is not None  # an encoder out of a folder
        return self.encoder.config

    @property
    def dim(self) -> int:
        """Length D of an embedding and of a token."""
        return self.encoder.backbone.width

    @property
    def token_grid(self) -> tuple[int, int]:
        """(rows, cols) of a token map."""
        return self.encoder.spec.t, self.encoder.spec.t

    @property
    def num_bytes(self) -> int:
        """Size of the backbone's weights."""
        state = self.encoder.backbone.state_dict().values()
        return sum(tensor.numel() * tensor.element_size() for tensor in state)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights: which model an embedding is of."""
        return sha256_of(self.folder / WEIGHTS[self.which])

    def describe(self) -> dict[str, str | int | float | list[float]]:
        """Describe the weights and the preprocessing, for users of embeddings or of an exported model."""
        backbone = self.config.backbone
        rows, cols = self.token_grid
        preprocessing = {name: value for name, value in asdict(self.preprocessing).items() if value is not None}
        return {
            "model_sha256": self.fingerprint,
            "network": self.which,
            "backbone": backbone.name,
            "token_activation": backbone.token_activation,
            "whitening": str(self.encoder.backbone.is_whitened).lower(),
            "dim": self.dim,
            "rows": rows,
            "cols": cols,
            **preprocessing,
            "mean": as_written(self.preprocessing.mean),
            "std": as_written(self.preprocessing.std),
            "version": version("ace-pretraining"),
        }

    def embed(
        self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = BATCH_SIZE, with_tokens: bool = True
    ) -> Embeddings:
        """Embed one image, or several in their order.

        An array or tensor of two or three dimensions is one image, of four several. All embeddings are held in memory:
        for a large folder use `python -m ace embed`.

        Args:
            images: As `to_pixels` takes them (8- and 16-bit, floats in [0, 1], paths of image files), or an iterable of
                such.
            batch_size: Images in one forward pass.
            with_tokens: Keep token maps, which are some hundred times as long as an embedding.

        Returns:
            `embedding` [D] and `tokens` [rows, cols, D] of one image; [N, D] and [N, rows, cols, D] of N.

        Raises:
            ImageInputError: with the position of what cannot be embedded.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected 1 or more")
        token_dtype = torch.float32 if with_tokens else None
        if _is_one(images):
            found = self.embed_canvases([self.preprocessing.place(to_pixels(images))], token_dtype)
            return Embeddings(found.embedding[0], None if found.tokens is None else found.tokens[0])
        if not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | Mapping):
            raise ImageInputError(f"a {type(images).__name__} is neither an image nor an iterable of images")
        canvases = self._placed(images)
        placed = iter(lambda: list(islice(canvases, batch_size)), [])
        chunks = [self.embed_canvases(chunk, token_dtype) for chunk in placed]
        tokens = [chunk.tokens for chunk in chunks if chunk.tokens is not None]
        return Embeddings(
            torch.cat([torch.empty(0, self.dim), *(chunk.embedding for chunk in chunks)]),
            torch.cat([torch.empty(0, *self.token_grid, self.dim), *tokens]) if with_tokens else None,
        )

    def embed_canvases(self, canvases: Sequence[Canvas], token_dtype: torch.dtype | None) -> Embeddings:
        """Embed images that `preprocessing` has placed, in one forward pass.

        Args:
            canvases: The images.
            token_dtype: In which their tokens leave the device; None leaves them there.
        """
        images = self.preprocessing.normalize(canvases, self.encoder.device)
        with torch.inference_mode():
            tokens = tokens_of(self.encoder, images)
            kept = None if token_dtype is None else tokens.to(token_dtype).cpu()
            return Embeddings(embedding_of(tokens).cpu(), kept)

    def _placed(self, images: Iterable[ImageInput]) -> Iterator[Canvas]:
        for position, image in enumerate(images):
            try:
                yield self.preprocessing.place(to_pixels(image))
            except ImageInputError as error:
                raise ImageInputError(f"image {position}: {error}") from None


def load_model(
    model: str | Path,
    *,
    which: Which,
    device: str,
    normalisation: Choice,
    batch: str | None = None,
    measured: MeasuredParams | None = None,
) -> EmbeddingModel:
    """`ace.load`, and for images of a known batch.

    Args:
        model: As for `ace.load`.
        which: As for `ace.load`.
        device: As for `ace.load`.
        normalisation: As for `ace.load`.
        batch: Where the images are from; if the model was trained with it, they are normalised as then, unless
            `normalisation` says otherwise.
        measured: The batch's own mean and std, which normalise its images if the model was not trained with it.

    Raises:
        ConfigError: as for `ace.load`; there is no such network.
    """
    if which not in WEIGHTS:
        raise ConfigError(f"which='{which}': a model has the networks {' and '.join(WEIGHTS)}")
    folder = find_model(model)
    encoder = load_encoder(folder, which, device)
    if normalisation is None and batch in encoder.mixes:
        normalisation = batch
    elif normalisation is None and measured is not None and not encoder.is_imported:
        own = measured.normalisation(encoder.in_channels)
        preprocessing = preprocessing_of(encoder, (own.mean, own.std))
        return EmbeddingModel(
            encoder=encoder,
            preprocessing=replace(preprocessing, normalisation=f"own of {batch}"),
            folder=folder,
            which=which,
        )
    return EmbeddingModel(
        encoder=encoder, preprocessing=preprocessing_of(encoder, normalisation), folder=folder, which=which
    )


def _is_one(images: object) -> TypeGuard[ImageInput]:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image | str | os.PathLike)
