"""Swin (Liu et al., ICCV 2021) written from the paper, with the parameter names and buffers of its first release.

Slow on purpose: windows and heads are taken one by one. A stage's downsampling belongs to the end of that stage, and
index tables and masks are saved with the weights.
"""

import torch
from torch import Tensor, nn

from tests.oracles.original_vit import Mlp


class Attention(nn.Module):
    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = [(row, col) for row in range(window) for col in range(window)]
        index = [[(r - i + window - 1) * (2 * window - 1) + c - j + window - 1 for i, j in places] for r, c in places]
        self.register_buffer("relative_position_index", torch.tensor(index))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """One window of every image: tokens [batch, window², dim]; mask [window², window²] is added to the logits."""
        dim = tokens.shape[-1]
        queries, keys, values = self.qkv(tokens).split(dim, dim=-1)
        size, outputs = dim // self.heads, []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            logits = queries[..., part] @ keys[..., part].mT / size**0.5
            logits = logits + self.relative_position_bias_table[self.relative_position_index, head]
            if mask is not None:
                logits = logits + mask
            outputs.append(logits.softmax(-1) @ values[..., part])
        return self.proj(torch.cat(outputs, dim=-1))


class Block(nn.Module):
    def __init__(self, dim: int, side: int, window: int, heads: int, *, is_shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if is_shifted and side > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, self.window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.register_buffer("attn_mask", self._mask() if self.shift else None)

    def _windows(self) -> list[tuple[int, int]]:
        starts = range(0, self.side, self.window)
        return [(row, col) for row in starts for col in starts]

    def _mask(self) -> Tensor:
        """−100 between tokens of one window that were not neighbours before the cyclic shift."""

        def band(place: int) -> int:
            return (place >= self.side - self.window) + (place >= self.side - self.shift)

        masks = []
        for row, col in self._windows():
            bands = [(band(r), band(c)) for r in range(row, row + self.window) for c in range(col, col + self.window)]
            masks.append([[0.0 if a == b else -100.0 for b in bands] for a in bands])
        return torch.tensor(masks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, side, side, dim]."""
        shifted = torch.roll(self.norm1(tokens), (-self.shift, -self.shift), dims=(1, 2))
        attended = torch.zeros_like(shifted)
        for number, (row, col) in enumerate(self._windows()):
            rows, cols = slice(row, row + self.window), slice(col, col + self.window)
            inside = shifted[:, rows, cols]
            mask = None if self.attn_mask is None else self.attn_mask[number]
            attended[:, rows, cols] = self.attn(inside.flatten(1, 2), mask).reshape(inside.shape)
        tokens = tokens + torch.roll(attended, (self.shift, self.shift), dims=(1, 2))
        return tokens + self.mlp(self.norm2(tokens))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        corners = [tokens[:, row::2, col::2] for row, col in [(0, 0), (1, 0), (0, 1), (1, 1)]]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    def __init__(self, dim: int, side: int, depth: int, window: int, heads: int, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, side, window, heads, is_shifted=number % 2 == 1) for number in range(depth)
        )
        if not is_last:
            self.downsample = PatchMerging(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.downsample(tokens) if hasattr(self, "downsample") else tokens


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class OriginalSwin(nn.Module):
    """Images [batch, channels, side, side] to tokens [batch, rows, cols, dim] after the last norm."""

    def __init__(
        self, *, image_px: int, channels: int, dim: int, depths: list[int], heads: list[int], window: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(4, channels, dim)
        self.layers = nn.ModuleList(
            Stage(
                dim * 2**number,
                image_px // 4 // 2**number,
                depth,
                window,
                heads[number],
                is_last=number == len(depths) - 1,
            )
            for number, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(dim * 2 ** (len(depths) - 1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)
