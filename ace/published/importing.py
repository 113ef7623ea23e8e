"""`ace import`: one published backbone becomes a model folder that evaluation, embedding and export read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ace.models.backbone import build_backbone
from ace.models.folder import CONFIG, FORMAT_VERSION, IMPORTED, WEIGHTS
from ace.models.foreign import StateDict, read_state_dict
from ace.models.notice import NOTICE
from ace.models.params import BackboneParams
from ace.models.tensors import write_tensors
from ace.published.naming import Family, KeyMap, map_keys
from shards.errors import ConfigError
from shards.format.layout import sha256_of
from shards.grid import GridSpec, Scale
from shards.normalisation import Levels, Normalisation, as_tuple, text_of
from shards.params import MixParams
from shards.runtime.atomic import atomic_directory, write_text

CARD = """\
---
library_name: timm
license: other
tags: [medical-imaging, self-supervised, ACE]
---
# Imported encoder ({backbone})

Weights that others trained and published, converted and not changed. This project did not train them: which images
they saw, for how long and with which settings is not known here. Their publisher's licence applies to them.

| | |
|---|---|
| backbone | `{backbone}`{model_args}, {in_channels} channel(s), {num_parameters:,} parameters |
| input | {crop_px} × {crop_px} px, {t} × {t} tokens; pixels in [0, 1] minus {mean}, over {std} |
| made from | `{file}`, sha256 `{sha256}`, {nest} |
| left out | {num_derived} tables that follow from the architecture, {num_heads} tensors of heads: see `config.json` |

`teacher_backbone.safetensors` is the encoder. There is no student, no head and no training log. No file holds pickled
code. Normalisation and canvas were given at the import; the file does not state them.

{notice}
"""


@dataclass(frozen=True)
class Architecture:
    """A backbone as the authors published it, and the input it is for.

    Attributes:
        family: Whose key names the file has.
        name: timm's name of the architecture.
        spec: Grid; the image side is `spec.crop_px`.
        model_args: Further arguments of the architecture.
    """

    family: Family
    name: str
    spec: GridSpec
    model_args: Mapping[str, Any] = field(default_factory=dict)


def _grid(cell_px: int) -> GridSpec:
    """The paper's: 14×14 tokens, half the overlap, jitter to 85 % of the area."""
    return GridSpec(32, cell_px, 14, (Scale(2, 2, 1.0),), 0.5, 0.85)


ARCHITECTURES = {
    "swin_b": Architecture("swin", "swin_base_patch4_window7_224", _grid(32)),
    "vit_b": Architecture("vit", "vit_base_patch32_224", _grid(32)),
    "vit_b16": Architecture("vit", "vit_base_patch16_224", _grid(16)),
}


def import_checkpoint(
    path: Path,
    out: Path,
    architecture: Architecture,
    *,
    network: Literal["teacher", "student"],
    mean: Levels,
    std: Levels,
) -> KeyMap:
    """Convert a checkpoint and write the model folder, whole or not at all; returns what each key of the file was.

    Args:
        path: File of the authors: `network` → keys below `backbone.` in the original naming, or a bare state dict.
        out: Folder of the model; must not exist.
        architecture: What the file holds.
        network: Which of its networks becomes the encoder.
        mean: Subtracted from pixels in [0, 1], as in the encoder's training: one number, or one for each channel.
        std: Pixels are divided by it after; likewise.

    Raises:
        NoSpaceError: the disk has too little room, or is full.
        ConfigError: `out` exists, the file cannot be read, or a tensor is unknown, missing, of another shape, or not
            finite; the encoder has another number of channels than `mean` or `std`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out or remove it")
    mix = MixParams.from_params({"weight": 1.0, "mean": mean, "std": std}, "normalisation")
    state = read_state_dict(path, nests=(network, "state_dict", "model"))
    keys = map_keys(state.tensors, architecture.family)
    backbone = {
        "name": architecture.name,
        "model_args": dict(architecture.model_args),
        "in_channels": (in_channels := _in_channels(path, state)),
        "token_activation": "identity",
        "drop_path": 0.0,
        "weights": None,
    }
    Normalisation(mix.mean, mix.std).per_channel(in_channels, "normalisation", "give --mean and --std accordingly")
    built = build_backbone(BackboneParams.from_params(backbone, f"{path}: backbone"), architecture.spec)
    _load(built.model, state.tensors, keys, path)
    heads = (*keys.heads, *state.beside)
    config = {
        "format_version": FORMAT_VERSION,
        "origin": IMPORTED,
        "source": {
            "file": path.name,
            "sha256": sha256_of(path),
            "nest": state.nest,
            "derived": keys.derived,
            "heads": heads,
        },
        "params": {
            "pretrain": {"backbone": backbone},
            "grid": architecture.spec.to_json(),
            "batches": {IMPORTED: {"mix": mix.model_dump(mode="json")}},
        },
        "versions": {name: version(name) for name in ("torch", "timm")},
    }
    num_parameters = sum(parameter.numel() for parameter in built.parameters())
    tensors = built.state_dict()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with atomic_directory(out, num_bytes) as finished:
        write_tensors(tensors, finished / WEIGHTS["teacher"])
        write_text(finished / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_text(finished / "README.md", _card(config, architecture.spec, num_parameters))
    return KeyMap(keys.weights, keys.derived, heads)


def _card(config: Mapping[str, Any], spec: GridSpec, num_parameters: int) -> str:
    source, backbone = config["source"], config["params"]["pretrain"]["backbone"]
    mix = config["params"]["batches"][IMPORTED]["mix"]
    return CARD.format(
        notice=NOTICE,
        backbone=backbone["name"],
        model_args=f" {backbone['model_args']}" if backbone["model_args"] else "",
        in_channels=backbone["in_channels"],
        num_parameters=num_parameters,
        crop_px=spec.crop_px,
        t=spec.t,
        mean=text_of(as_tuple(mix["mean"])),
        std=text_of(as_tuple(mix["std"])),
        file=source["file"],
        sha256=source["sha256"],
        nest=f"network `{source['nest']}`" if source["nest"] else "its only network",
        num_derived=len(source["derived"]),
        num_heads=len(source["heads"]),
    )


def _in_channels(path: Path, state: StateDict) -> int:
    kernel = state.tensors.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] not in (1, 3):
        found = "is missing" if kernel is None else f"has the shape {tuple(kernel.shape)}"
        raise ConfigError(
            f"{path}: patch_embed.proj.weight {found}; expected (width, 1 or 3 channels, patch, patch): not a "
            "Swin or ViT in its original naming"
        )
    return kernel.shape[1]


def _load(model: nn.Module, tensors: Mapping[str, Tensor], keys: KeyMap, path: Path) -> None:
    """Every tensor of the model from the file, and every table of the file equal to the model's own."""
    given = {key: tensors[origin] for origin, key in keys.weights.items()}
    needed = model.state_dict()
    wrong = [f"{key} holds NaN or infinite numbers" for key, value in given.items() if not value.isfinite().all()]
    wrong += [f"{key} is missing" for key in needed if key not in given]
    wrong += [f"{key} has no place" for key in given if key not in needed]
    wrong += [
        f"{key} has the shape {tuple(value.shape)}, expected {tuple(needed[key].shape)}"
        for key, value in given.items()
        if key in needed and value.shape != needed[key].shape
    ]
    tables = dict(model.named_buffers())
    wrong += [
        f"{key} is another table than the architecture's at this image size"
        for key in keys.derived
        if key not in tables or not torch.equal(tables[key], tensors[key].to(tables[key].dtype))
    ]
    if wrong:
        raise ConfigError(
            f"{path}: not this architecture at this image size; {len(wrong)} tensors do not fit: "
            f"{'; '.join(wrong[:5])}; choose the architecture and size that the file was trained with"
        )
    model.load_state_dict(given)
