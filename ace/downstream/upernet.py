"""UPerNet on the feature maps of any timm backbone: the network of segmentation and of landmarks (docs/finetune.md)."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ace.models.backbone import Backbone
from shards.core.errors import ConfigError

FINEST_STRIDE = 4
"""Pixels of the image, along a side, to one of the finest map."""
CHANNELS_PER_GROUP = 16


class FeaturePyramid(nn.Module):
    """Gives the feature maps of a backbone from `FINEST_STRIDE` on, the finest first and its tokens last.

    They are its own maps, the last one of each size. Where the finest of them is coarser than `FINEST_STRIDE`, as a
    ViT's only one is, transposed convolutions make finer ones from it, as in the simple feature pyramid of Li et al.,
    "Exploring plain vision transformer backbones for object detection", ECCV 2022.

    Attributes:
        backbone: The encoder; all of its parameters are used.
        levels: Which of its maps are taken beside the tokens.
        finer: Makes a map of twice the size from the finest one, and so on.
        channels: Channels of each map.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        shapes = _map_shapes(backbone)
        last = {size_px: level for level, (_, size_px) in enumerate(shapes)}
        finest = backbone.crop_px / FINEST_STRIDE
        self.levels = [last[size_px] for size_px in sorted(last, reverse=True) if backbone.t < size_px <= finest]
        channels = [*(shapes[level][0] for level in self.levels), backbone.width]
        size_px = shapes[self.levels[0]][1] if self.levels else backbone.t
        self.finer = nn.ModuleList()
        while size_px < finest:
            self.finer.append(_Doubling(channels[0], max(channels[0] // 2, CHANNELS_PER_GROUP)))
            channels.insert(0, max(channels[0] // 2, CHANNELS_PER_GROUP))
            size_px *= 2
        self.channels = tuple(channels)

    def forward(self, images: Float[Tensor, "batch planes side side"]) -> list[Tensor]:
        """Return the maps, each [batch, channels, rows, cols]."""
        model = self.backbone.model
        features, found = model.forward_intermediates(images)
        tokens = self.backbone.tokens(model.forward_head(features))
        maps = [*(found[level] for level in self.levels), tokens.permute(0, 3, 1, 2)]
        for double in self.finer:
            maps.insert(0, double(maps[0]))
        return maps


class UPerNet(nn.Module):
    """Is the decoder of Xiao et al., "Unified perceptual parsing for scene understanding", ECCV 2018.

    It is that of segmentation-models-pytorch.

    Deviation: group normalisation in the place of batch normalisation, so that a step does not depend on how many
    images it sees at once, in how many parts or processes; few-shot batches have two or three images.

    Attributes:
        pyramid: The encoder and its maps.
    """

    def __init__(self, backbone: Backbone, num_outputs: int, decoder_channels: int) -> None:
        """Build the decoder with random weights.

        Args:
            backbone: The encoder, whose weights are kept.
            num_outputs: Maps that are returned.
            decoder_channels: Width of the decoder, a multiple of `CHANNELS_PER_GROUP`.

        Raises:
            ConfigError: the packages of the extra `downstream` are not installed.
        """
        # Here, not above: it takes a second to import, and comes with an extra.
        try:
            from segmentation_models_pytorch.base.initialization import initialize_decoder
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError as error:
            raise ConfigError(
                f"segmentation and landmarks need {error.name}, which is not installed: pip install "
                "'ace-pretraining[downstream]'"
            ) from None

        super().__init__()
        self.pyramid = FeaturePyramid(backbone)
        # The library counts maps from the image on, and leaves out the first two.
        decoder = UPerNetDecoder(
            [0, 0, *self.pyramid.channels],
            encoder_depth=len(self.pyramid.channels) + 1,
            decoder_channels=decoder_channels,
        )
        self.decoder = _with_group_norm(decoder)
        initialize_decoder(self.decoder)
        self.head = nn.Conv2d(decoder_channels, num_outputs, kernel_size=1)

    def forward(self, images: Float[Tensor, "batch planes side side"]) -> Float[Tensor, "batch outputs rows cols"]:
        """Return the maps at the finest stride of the pyramid."""
        maps: Tensor = self.head(self.decoder([None, None, *self.pyramid(images)]))
        return maps


class _Doubling(nn.Sequential):
    """Makes a map of twice the size, by transposed convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2),
            nn.GroupNorm(1, out_channels),
            nn.GELU(),
        )


def _map_shapes(backbone: Backbone) -> list[tuple[int, int]]:
    """Return channels and rows of every map that timm gives, found on the meta device: no arithmetic."""
    twin = copy.deepcopy(backbone.model).to("meta").eval()
    dtype = next(twin.parameters()).dtype
    images = torch.empty(1, twin.in_chans, backbone.crop_px, backbone.crop_px, device="meta", dtype=dtype)
    with torch.no_grad():
        _, maps = twin.forward_intermediates(images)
    return [(found.shape[1], found.shape[2]) for found in maps]


def _with_group_norm(module: nn.Module) -> nn.Module:
    """Put group normalisation in the place of every batch normalisation inside a module."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(part.num_features // CHANNELS_PER_GROUP, part.num_features))
        else:
            _with_group_norm(part)
    return module
