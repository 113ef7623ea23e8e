"""ViT (Dosovitskiy et al., ICLR 2021) written from the paper, with the parameter names of DINO's release."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        dim = tokens.shape[-1]
        queries, keys, values = self.qkv(tokens).split(dim, dim=-1)
        size, outputs = dim // self.heads, []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            weights = (queries[..., part] @ keys[..., part].mT / size**0.5).softmax(-1)
            outputs.append(weights @ values[..., part])
        return self.proj(torch.cat(outputs, dim=-1))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)


class OriginalViT(nn.Module):
    """Images [batch, channels, side, side] to patch tokens [batch, rows, cols, dim] after the last norm."""

    def __init__(self, *, image_px: int, patch: int, channels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.side = image_px // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.patch_embed = PatchEmbed(patch, channels, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed.proj(images).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 1:].reshape(len(images), self.side, self.side, -1)
