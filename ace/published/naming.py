"""Keys of Swin and ViT in their original releases, which the authors' checkpoints use, as keys of timm's models."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from shards.core.errors import ConfigError

Family = Literal["swin", "vit"]

_LAYER = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
_WEIGHTS: Mapping[Family, str] = {
    "swin": (
        rf"patch_embed\.(proj|norm)\.(weight|bias)|layers\.\d+\.blocks\.\d+\.({_LAYER}"
        r"|attn\.relative_position_bias_table)|norm\.(weight|bias)"
    ),
    "vit": rf"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\.{_LAYER}|norm\.(weight|bias)",
}
_DOWNSAMPLING = r"layers\.(\d+)\.(downsample\.(reduction\.weight|norm\.(weight|bias)))"
_DERIVED = r"layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)"
_HEAD = r"head\..+"


@dataclass(frozen=True)
class KeyMap:
    """A key map tells what each key of a backbone is.

    Attributes:
        weights: Key in the file to key in timm's model.
        derived: Buffers that follow from window and image size; timm's model computes them, under the same key.
        heads: Keys of a classifier or projector.
    """

    weights: Mapping[str, str]
    derived: tuple[str, ...]
    heads: tuple[str, ...]


def map_keys(keys: Iterable[str], family: Family) -> KeyMap:
    """Sort every key of a backbone, given without the prefixes of wrappers and enclosures.

    The original Swin downsamples at the end of a stage and timm at the start of the next one; all else keeps its name.

    Raises:
        ConfigError: some keys are none of the architecture.
    """
    weights: dict[str, str] = {}
    derived, heads, unknown = [], [], []
    for key in keys:
        if family == "swin" and (match := re.fullmatch(_DOWNSAMPLING, key)):
            weights[key] = f"layers.{int(match[1]) + 1}.{match[2]}"
        elif re.fullmatch(_WEIGHTS[family], key):
            weights[key] = key
        elif family == "swin" and re.fullmatch(_DERIVED, key):
            derived.append(key)
        elif re.fullmatch(_HEAD, key):
            heads.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise ConfigError(
            f"{len(unknown)} keys are none of a {family} in its original naming: {', '.join(unknown[:8])}; choose the "
            "architecture of the file"
        )
    return KeyMap(weights, tuple(derived), tuple(heads))
