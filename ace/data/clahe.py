"""Contrast-limited adaptive histogram equalisation of many images at once, on any device.

The algorithm of Zuiderveld (Graphics Gems IV, 1994) with OpenCV's choices: borders mirrored where the tiles do not
divide the image, clipped counts handed out evenly and the rest in regular strides, bilinear mixing of the four nearest
tiles' curves. Counts are integers and the rest is single additions and multiplications, so that an image's result
depends on no other image and not on the device.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

LEVELS = 256

Images = UInt8[Tensor, "images height width"]


def equalise(images: Images, clip_limits: Float[Tensor, " images"], num_tiles: int) -> Images:
    """CLAHE of each image with its own clip limit.

    Args:
        images: 8-bit grey.
        clip_limits: Largest count of a grey level in a tile, as a multiple of the mean count.
        num_tiles: Tiles per image side.
    """
    height, width = images.shape[1:]
    tile_height, tile_width = _tile_sides(height, width, num_tiles)
    added = tile_height * num_tiles - height, tile_width * num_tiles - width
    tiled = mirrored(mirrored(images, 0, added[0], dim=1), 0, added[1], dim=2)
    tiles = tiled.reshape(len(images), num_tiles, tile_height, num_tiles, tile_width).transpose(2, 3)
    counts = _histograms(tiles.reshape(len(images), num_tiles**2, -1))
    curves = _curves(_clipped(counts, clip_limits, tile_height * tile_width), tile_height * tile_width)
    return _mixed(images, curves, tile_height, tile_width, num_tiles)


def eight_bits(levels: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Rounded and cut to 8 bits; the levels given are overwritten."""
    # By way of 32 bits: the direct conversion takes three times as long on the CPU.
    return levels.round_().clamp_(0, LEVELS - 1).int().to(torch.uint8)


def mirrored(images: Tensor, before: int, after: int, *, dim: int) -> Tensor:
    """Lengthen images along an axis by mirroring them, as often as needed, at the centres of the outermost pixels."""
    size = images.shape[dim]
    period = max(2 * (size - 1), 1)

    def border(first: int, last: int) -> Tensor:
        folded = torch.arange(first, last, device=images.device).remainder(period)
        return images.index_select(dim, torch.minimum(folded, period - folded).clamp_max(size - 1))

    return torch.cat([border(-before, 0), images, border(size, size + after)], dim)


def _tile_sides(height: int, width: int, num_tiles: int) -> tuple[int, int]:
    """Return the sides of a tile, as OpenCV does.

    If one side of the image does not divide into tiles, both are lengthened, one that does divide by a pixel a tile.
    """
    if height % num_tiles == 0 and width % num_tiles == 0:
        return height // num_tiles, width // num_tiles
    return height // num_tiles + 1, width // num_tiles + 1


def _histograms(tiles: UInt8[Tensor, "images tiles pixels"]) -> Int[Tensor, "images tiles levels"]:
    ones = torch.ones(1, dtype=torch.int32, device=tiles.device).expand(tiles.shape)
    counts = torch.zeros(*tiles.shape[:2], LEVELS, dtype=torch.int32, device=tiles.device)
    return counts.scatter_add_(2, tiles.long(), ones)


def _clipped(
    counts: Int[Tensor, "images tiles levels"], clip_limits: Float[Tensor, " images"], num_pixels: int
) -> Int[Tensor, "images tiles levels"]:
    """Counts cut at the limit; what is cut is handed out to all levels alike, the rest one each at even distances."""
    limits = (clip_limits.double() * num_pixels / LEVELS).int().clamp_min(1)[:, None, None]
    num_cut = (counts - limits).clamp_min(0).sum(-1, keepdim=True, dtype=torch.int32)
    rest = num_cut % LEVELS
    stride = (LEVELS // rest.clamp_min(1)).clamp_min(1)
    levels = torch.arange(LEVELS, dtype=torch.int32, device=counts.device)
    turn = levels // stride
    is_given_one = (turn * stride == levels) & (turn < rest)
    return counts.minimum(limits) + num_cut // LEVELS + is_given_one


def _curves(counts: Int[Tensor, "images tiles levels"], num_pixels: int) -> Float[Tensor, "images tiles levels"]:
    """New level of each level: the share of pixels up to it, in 8 bits."""
    scale = float(np.float32(LEVELS - 1) / np.float32(num_pixels))
    return (counts.cumsum(-1, dtype=torch.int32).float() * scale).round_().clamp_(0, LEVELS - 1)


def _mixed(
    images: Images, curves: Float[Tensor, "images tiles levels"], tile_height: int, tile_width: int, num_tiles: int
) -> Images:
    """Map every pixel by the curves of the four tiles whose centres surround it, mixed by nearness."""
    above, below, down = _neighbours(images.shape[1], tile_height, num_tiles, images.device)
    left, right, across = _neighbours(images.shape[2], tile_width, num_tiles, images.device)
    down = down[:, None]
    flat = curves.flatten()
    first = torch.arange(len(images), dtype=torch.int32, device=images.device)[:, None, None] * num_tiles**2 * LEVELS
    place = images.int() + first

    def through(tile_row: Tensor, tile_col: Tensor) -> Tensor:
        tile = (tile_row[:, None] * num_tiles + tile_col) * LEVELS
        return flat.index_select(0, (place + tile).flatten()).view(images.shape)

    upper = through(above, left) * (1 - across) + through(above, right) * across
    lower = through(below, left) * (1 - across) + through(below, right) * across
    return eight_bits(upper * (1 - down) + lower * down)


def _neighbours(
    size: int, tile: int, num_tiles: int, device: torch.device
) -> tuple[Int[Tensor, " size"], Int[Tensor, " size"], Float[Tensor, " size"]]:
    """Find the tiles whose centres lie before and after each pixel of one axis, and how far the pixel is between them.

    At the ends of the axis both tiles are the last one.
    """
    # The inverse in single precision, and no division, as the oracle has it: it decides where a mix is rounded.
    inverse = float(np.float32(1) / np.float32(tile))
    place = torch.arange(size, dtype=torch.float32, device=device) * inverse - 0.5
    before = place.floor()
    indexes = before.int()
    return indexes.clamp_min(0), (indexes + 1).clamp_max(num_tiles - 1), place - before
