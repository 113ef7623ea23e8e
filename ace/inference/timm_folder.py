"""The backbone as a folder that timm and Hugging Face Transformers load."""

import json
from pathlib import Path
from typing import Any

import timm

from ace.embed.preprocessing import placement_text
from ace.inference.embedder import EmbeddingModel
from ace.inference.folder import new_folder
from ace.journal.card import ORIGINS, model_card
from ace.models.model_config import ImportedConfig
from ace.models.notice import NOTICE
from ace.models.tensors import write_tensors
from shards.core.normalisation import Normalisation, text_of
from shards.runtime.atomic import write_text

CONFIG, WEIGHTS, WHITENING, CARD = "config.json", "model.safetensors", "whitening.safetensors", "README.md"

_CARD = """\
---
library_name: timm
license: other
tags: [image-feature-extraction, timm, transformers, medical-imaging, self-supervised, ACE]
pipeline_tag: image-feature-extraction
---
# ACE encoder ({backbone})

{origin}
This is the {network}'s backbone.

| | |
|---|---|
| input | {crop_px} × {crop_px} px, {channels} channel(s): {placement} |
| normalisation | pixels in [0, 1], mean {mean_text}, std {std_text} ({normalisation}) |
| tokens | {rows} × {cols} of {dim} channels, after the last norm |
| token activation | `{token_activation}`, **not part of this model**: {activation_note} |
| token whitening | {whitening_note} |
| weights | sha256 {model_sha256} |

## Use

    import timm
    model = timm.create_model("local-dir:DIR", pretrained=True, num_classes=0, global_pool="").eval()
    tokens = model(images)

    from transformers import AutoModel
    tokens = AutoModel.from_pretrained("DIR")(pixel_values=images).pooler_output

The transforms that timm and Transformers read from this folder scale the longer side to {crop_px} px and pad the rest
with the mean grey, where ACE pads with black. For the same numbers, make an image a square with black first:

    from PIL import ImageOps
    image = ImageOps.pad(image, ({crop_px}, {crop_px}))

Both give the tokens in the architecture's own layout (a ViT's with its prefix tokens in front). The embedding of an
image is the mean of its image tokens, after their activation and whitening, divided by its norm.

## Data

{data}

## Limits

{limits}
"""
_IMPORTED = """\
Weights that others trained and published, converted from `{file}` (sha256 `{sha256}`) and not changed. Their
publisher's licence applies to them."""
_IMPORTED_DATA = "Which images the encoder saw is not known here."
_ACTIVATION_NOTES = {
    "relu": "apply `torch.relu` to the tokens, as pretraining did, before you pool them",
    "identity": "there is nothing to apply",
}
_WHITENING_NOTE = """\
`whitening.safetensors`, **not part of this model**: after the activation, multiply the tokens by \
`safetensors.torch.load_file("whitening.safetensors")["weight"]`"""


def export_timm(model: EmbeddingModel, out: Path) -> None:
    """Write config.json, model.safetensors, the map of a whitened encoder's tokens and a model card into a new folder.

    Args:
        model: Whose backbone.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: the folder is not empty.
        NoSpaceError: the disk has too little room, or is full.
    """
    backbone = model.encoder.backbone
    network = backbone.model
    with new_folder(out, model) as folder:
        write_tensors(network.state_dict(), folder / WEIGHTS)
        if backbone.is_whitened:
            # Of row vectors: tokens @ weight.
            write_tensors({"weight": backbone.state_dict()["whitening.weight"].T}, folder / WHITENING)
        write_text(folder / CONFIG, json.dumps(_config(model, network), indent=2) + "\n")
        write_text(folder / CARD, _card(model))


def _config(model: EmbeddingModel, network: Any) -> dict[str, Any]:
    """Return the hub configuration as timm names it; Transformers knows it by `pretrained_cfg`."""
    params = model.config.backbone
    preprocessing = model.preprocessing
    every = Normalisation(preprocessing.mean, preprocessing.std).per_channel(preprocessing.channels, "normalisation")
    original = timm.get_pretrained_cfg(params.name)
    is_fixed = original is not None and original.fixed_input_size
    size = {"img_size": preprocessing.crop_px} if is_fixed else {}
    return {
        "architecture": params.name,
        "num_classes": 0,
        "num_features": model.dim,
        "global_pool": "",
        "model_args": {
            **params.model_args,
            **size,
            "in_chans": preprocessing.channels,
            "global_pool": "",
        },
        "pretrained_cfg": {
            "tag": "ace",
            "custom_load": False,
            "input_size": [preprocessing.channels, preprocessing.crop_px, preprocessing.crop_px],
            "fixed_input_size": is_fixed,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            # Of another shape than a square nothing is cut off; timm's default crops the middle.
            "crop_mode": "border",
            "mean": list(every.mean),
            "std": list(every.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": network.pretrained_cfg.get("first_conv"),
            "classifier": network.pretrained_cfg.get("classifier"),
        },
    }


def _card(model: EmbeddingModel) -> str:
    about, config = model.describe(), model.config
    if isinstance(config, ImportedConfig):
        origin, data, limits = _IMPORTED.format(**dict(config.source)), _IMPORTED_DATA, NOTICE
    else:
        sections = _sections(model_card(config))
        origin, limits = ORIGINS[config.params.pretrain.objective], sections["Limits"]
        data = sections["Data"].partition("\n\n")[0]  # the table; what follows speaks of the model's own files
    return _CARD.format(
        **about,
        placement=placement_text(model.preprocessing.trim_level),
        mean_text=text_of(model.preprocessing.mean),
        std_text=text_of(model.preprocessing.std),
        origin=origin,
        activation_note=_ACTIVATION_NOTES[str(about["token_activation"])],
        whitening_note=_WHITENING_NOTE if model.encoder.backbone.is_whitened else "none",
        data=data,
        limits=limits,
    )


def _sections(card: str) -> dict[str, str]:
    """Headings of the second level with the text below each."""
    parts = [part.partition("\n") for part in card.split("\n## ")[1:]]
    return {heading.strip(): text.strip() for heading, _, text in parts}
