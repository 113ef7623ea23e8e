"""Any timm model with a token grid, behind one layout: images in, tokens [batch, t, t, dim] out (method.md §1, §3)."""

import difflib
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ace.models.params import BackboneParams
from ace.models.precision import full_precision
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec

_DIVISIBLE_PX = 256
"""An image side that the strides of networks divide."""
SET_BY_THE_GRID = ("img_size", "in_chans", "num_classes", "global_pool", "drop_path_rate", "pretrained")


def mean_token(tokens: Float[Tensor, "batch t t dim"]) -> Float[Tensor, "batch dim"]:
    """Return E0(x): the mean over the tokens of each image (method.md §5)."""
    return tokens.mean(dim=(1, 2))


class TokenMap(nn.Linear):
    """A linear map that is computed in the precision of the tokens, whatever autocast says and the weights are in."""

    def forward(self, input: Tensor) -> Tensor:
        """Map every token."""
        with full_precision(input.device):
            return F.linear(input, self.weight.to(input.dtype))


class Backbone(nn.Module):
    """A timm model without pooling and classifier.

    Deviation: with `token_activation: relu` tokens are non-negative, as additive parts are (Lee & Seung, Nature 401,
    1999); the paper's backbones end in their norm.

    Attributes:
        model: The timm model; its output is taken after the last norm.
        activation: Of the tokens.
        whitening: A linear map of the tokens, last of all; nothing while it is trained (`ace.pretrain.whitening`).
        crop_px: Side of the images that it takes.
        t: Tokens per crop side.
        width: Channels of a token.
    """

    def __init__(self, params: BackboneParams, *, crop_px: int, t: int) -> None:
        super().__init__()
        self.model = _create(params, crop_px)
        self.activation = nn.ReLU() if params.token_activation == "relu" else nn.Identity()
        self.whitening: nn.Module = nn.Identity()
        self.crop_px = crop_px
        self.t = t
        self.width: int = self.model.num_features

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch t t dim"]:
        """Tokens after the model's last norm, their activation and their whitening, in rows and columns of the image.

        They are fp32 or better, so that means over them are, in whatever precision the model computes.
        """
        return self.tokens(self.model(images))

    def tokens(self, features: Tensor) -> Float[Tensor, "batch t t dim"]:
        """Bring what the model returned into rows and columns, then apply activation and whitening."""
        tokens: Tensor = self.activation(self._as_rows_and_columns(features))
        mapped: Tensor = self.whitening(tokens.to(torch.promote_types(tokens.dtype, torch.float32)))
        return mapped

    @property
    def is_whitened(self) -> bool:
        """Tell whether `whitening` maps the tokens."""
        return isinstance(self.whitening, TokenMap)

    def whiten(self, weight: Float[Tensor, "dim dim"]) -> None:
        """Map every token by this matrix from now on."""
        self.whitening = TokenMap(self.width, self.width, bias=False, device=weight.device)
        self.whitening.weight.requires_grad_(False).copy_(weight)

    def checkpoint_activations(self) -> None:
        """Keep no activations inside the model's stages in training; the backward pass computes them again.

        Raises:
            ConfigError: the architecture cannot.
        """
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ConfigError(
                f"{type(self.model).__name__} has no activation checkpointing in timm; set "
                "pretrain.checkpoint_activations to false, or choose another backbone"
            ) from None

    def _as_rows_and_columns(self, features: Tensor) -> Tensor:
        """Timm's three layouts: NLC with prefix tokens (ViT), NHWC (Swin), NCHW (ConvNeXt)."""
        if features.ndim == 3:
            # Contiguous: a linear layer on tokens with the prefix cut off runs as a slow batched product.
            tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :].contiguous()
            return tokens.reshape(len(tokens), self.t, self.t, self.width)
        return features if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)


def build_backbone(params: BackboneParams, spec: GridSpec) -> Backbone:
    """Build a freshly initialised backbone whose tokens are the grid's cells.

    Raises:
        ConfigError: the name is unknown, timm refuses the arguments, or the token grid is not t×t.
    """
    check_backbone(params, spec)
    return Backbone(params, crop_px=spec.crop_px, t=spec.t)


def check_backbone(params: BackboneParams, spec: GridSpec) -> None:
    """Build and run the backbone on the meta device: no memory, no arithmetic, every shape.

    Raises:
        ConfigError: the name is unknown, timm refuses the arguments, or the token grid is not t×t.
    """
    where = f"backbone {params.name} on {spec.crop_px}-px crops (t·cell_px = {spec.t}·{spec.cell_px})"
    found = _token_grid(params, spec.crop_px, where)
    if found != (spec.t, spec.t):
        raise ConfigError(
            f"{where}: the token grid is {found[0]}×{found[1]}, expected t×t = {spec.t}×{spec.t}; "
            f"its tokens are {spec.crop_px // found[0]} px apart: set cell_px to that or choose another model"
        )


def stride_of(params: BackboneParams) -> int:
    """Return how many pixels apart the architecture's tokens are, found as in `check_backbone`.

    Raises:
        ConfigError: the name is unknown, timm refuses the arguments, or its tokens do not divide an image evenly.
    """
    import timm

    config = timm.get_pretrained_cfg(params.name) if timm.is_model(params.name) else None
    size_px = config.input_size[-1] if config is not None and config.fixed_input_size else _DIVISIBLE_PX
    where = f"backbone {params.name} on images of {size_px} px"
    rows, cols = _token_grid(params, size_px, where)
    if rows != cols or size_px % rows:
        raise ConfigError(f"{where}: its {rows}×{cols} tokens do not divide the image evenly; choose another model")
    return size_px // rows


def _token_grid(params: BackboneParams, size_px: int, where: str) -> tuple[int, int]:
    """Rows and columns of the tokens of a square image.

    Raises:
        ConfigError: the name is unknown, or timm refuses the arguments.
    """
    import timm

    reserved = sorted(set(params.model_args) & set(SET_BY_THE_GRID))
    if reserved:
        raise ConfigError(f"{where}: model_args sets {reserved}, which follow from grid and backbone; remove them")
    absent = sorted(name for name, value in params.model_args.items() if value is None)
    if absent:
        raise ConfigError(f"{where}: model_args gives no value for {absent}, which timm would ignore; remove them")
    if not timm.is_model(params.name):
        close = difflib.get_close_matches(params.name, timm.list_models(), n=3)
        hint = f"did you mean one of {', '.join(close)}?" if close else "timm.list_models() names them all"
        raise ConfigError(f"{where}: timm has no such model; {hint}")
    try:
        # Neither the weights nor the activation have a part in it.
        traced = params.model_copy(update={"weights": None, "token_activation": "identity"})
        return _traced_grid(traced.model_dump_json(), size_px)
    except Exception as error:  # whatever timm does with arguments it does not like
        raise ConfigError(f"{where}: timm refuses: {error}; check model_args, t and cell_px") from error


@cache
def _traced_grid(params: str, size_px: int) -> tuple[int, int]:
    """Run the network on the meta device, once for all trainings of a configuration; `params` are given as JSON."""
    backbone = BackboneParams.model_validate_json(params)
    with torch.device("meta"):
        model = _create(backbone, size_px)
        return _grid_shape(model, model(torch.empty(1, backbone.in_channels, size_px, size_px)))


def _create(params: BackboneParams, crop_px: int) -> Any:
    # Imported where it is used: it takes two seconds, and most commands that read this module build no network.
    import timm

    # timm's own rule for which architectures take img_size: those whose weights fix the input size.
    config = timm.get_pretrained_cfg(params.name)
    size = {"img_size": crop_px} if config is not None and config.fixed_input_size else {}
    return timm.create_model(
        params.name,
        pretrained=False,
        in_chans=params.in_channels,
        num_classes=0,
        global_pool="",
        drop_path_rate=params.drop_path,
        **size,
        **params.model_args,
    )


def _grid_shape(model: Any, features: Tensor) -> tuple[int, int]:
    if features.ndim == 3:
        rows, cols = model.patch_embed.grid_size
        return int(rows), int(cols)
    if features.ndim != 4:
        raise ValueError(f"its output has the shape {tuple(features.shape)}, no token grid")
    axes = (1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
    return features.shape[axes[0]], features.shape[axes[1]]
