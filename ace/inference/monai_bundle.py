"""The encoder as a MONAI bundle: a folder of metadata, an inference configuration and the exported network.

MONAI's bundle specification names the files; `python -m monai.bundle run` carries the configuration out.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ace.embed.preprocessing import placement_text
from ace.inference import bundle_preprocessing
from ace.inference.embedder import EmbeddingModel
from ace.inference.folder import new_folder
from ace.inference.onnx import ExportError
from ace.inference.traced import EmbeddingAndTokens, traced
from ace.journal.card import ORIGINS, model_card
from ace.models.model_config import ImportedConfig
from ace.models.notice import NOTICE
from shards.core.normalisation import Normalisation
from shards.runtime.atomic import write_text

NETWORK, METADATA, INFERENCE, CARD, SCRIPT = (
    "models/model.pt2",
    "configs/metadata.json",
    "configs/inference.json",
    "docs/README.md",
    "scripts/preprocessing.py",
)
_MODES = {1: "L", 3: "RGB"}
CHECKED_BATCHES = (1, 3)
"""Batch sizes of the comparison; neither is the one that the network is traced with."""


def export_monai(model: EmbeddingModel, out: Path) -> None:
    """Write a MONAI bundle into a new folder; its network gives what the model gives, which is checked first.

    Args:
        model: On the CPU.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: the folder is not empty.
        NoSpaceError: the disk has too little room, or is full.
        ExportError: the exported network computes something else; nothing is written.
    """
    preprocessing = model.preprocessing
    size = (preprocessing.channels, preprocessing.crop_px, preprocessing.crop_px)
    network = EmbeddingAndTokens(model.encoder.backbone).eval()
    with new_folder(out, model) as folder:
        for name in (NETWORK, METADATA, CARD, SCRIPT):
            (folder / name).parent.mkdir()
        torch.export.save(traced(network, size), folder / NETWORK)
        _check(network, folder / NETWORK, size)
        write_text(folder / METADATA, json.dumps(_metadata(model, size), indent=2) + "\n")
        write_text(folder / INFERENCE, json.dumps(_inference(model), indent=2) + "\n")
        write_text(folder / CARD, _card(model))
        shutil.copyfile(bundle_preprocessing.__file__, folder / SCRIPT)


def _check(network: EmbeddingAndTokens, path: Path, size: tuple[int, int, int]) -> None:
    loaded = torch.export.load(path).module()
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, *size, generator=generator)
        with torch.inference_mode():
            for found, expected in zip(loaded(images), network(images), strict=True):
                if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                    raise ExportError(
                        "the exported network differs from the model on random inputs; nothing is written. Try another "
                        "release of torch"
                    )


def _metadata(model: EmbeddingModel, size: tuple[int, int, int]) -> dict[str, Any]:
    about = model.describe()
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by ace-pretraining {about['version']}"},
        "monai_version": "1.4.0",
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"pillow": version("pillow")},
        "task": "Embedding of medical images",
        "description": f"{_origin(model)} {NOTICE}",
        "authors": "not stated",
        "copyright": "not stated",
        "data_type": "PNG and JPEG",
        "image_classes": f"{size[0]} channel(s): {placement_text(model.preprocessing.trim_level)}",
        "pred_classes": "an embedding of length 1; the network's second output are the tokens, [B, rows, cols, dim]",
        "ace": about,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": size[0],
                    "spatial_shape": [size[1], size[2]],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(_MODES[size[0]])},
                }
            },
            "outputs": {
                "pred": {
                    "type": "embedding",
                    "format": "features",
                    "num_channels": model.dim,
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "feature"},
                }
            },
        },
    }


def _inference(model: EmbeddingModel) -> dict[str, Any]:
    """Return the configuration: files of a folder → batches of normalised images → embeddings.npz."""
    preprocessing = model.preprocessing
    levels = Normalisation(preprocessing.mean, preprocessing.std).per_channel(preprocessing.channels, "normalisation")
    square = f"side={preprocessing.crop_px}, channels={preprocessing.channels}, trim_level={preprocessing.trim_level}"
    return {
        "imports": ["$import functools", "$import numpy", "$import runpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output": "embeddings.npz",
        "batch_size": 8,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        # Run rather than imported: a folder `scripts` of whoever runs it comes first in the path.
        "own": f"$runpy.run_path(@bundle_root + '/{SCRIPT}')",
        "paths": "$@own['find_images'](@dataset_dir)",
        "network": f"$torch.export.load(@bundle_root + '/{NETWORK}').module().to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImage",
                    "reader": {
                        "_target_": "PILReader",
                        "converter": f"$functools.partial(@own['place'], {square})",
                        "reverse_indexing": False,
                    },
                    "image_only": True,
                    "ensure_channel_first": True,
                },
                {"_target_": "ScaleIntensityRange", "a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0},
                {
                    "_target_": "NormalizeIntensity",
                    "subtrahend": list(levels.mean),
                    "divisor": list(levels.std),
                    "channel_wise": True,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@paths", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": "@batch_size", "num_workers": 0},
        "embeddings": "$torch.cat([@network(b.as_tensor().to(@device))[0].detach().cpu() for b in @dataloader])",
        "run": ["$numpy.savez(@output, paths=@paths, embeddings=@embeddings.numpy())"],
    }


def _origin(model: EmbeddingModel) -> str:
    config = model.config
    if isinstance(config, ImportedConfig):
        return "Weights that others trained and published; their publisher's licence applies to them."
    return " ".join(ORIGINS[config.params.pretrain.objective].split())


def _card(model: EmbeddingModel) -> str:
    use = f"""\
# MONAI bundle of an ACE encoder

{_origin(model)}

    pip install monai fire pillow
    python -m monai.bundle run run --config_file {INFERENCE} --bundle_root . --dataset_dir /folder/of/images

is given in this bundle's folder, and writes `embeddings.npz`: `paths`, and `embeddings` with one row an image.
From another folder, give both options as absolute paths.
The PNG and JPEG files of the folder itself are read, grey of up to 16 bits or colour of 8; no DICOM is.
`{SCRIPT}` brings them to the encoder's square, and `configs/metadata.json` says under `ace` how.
The network is `{NETWORK}`, saved by `torch.export`: normalised images to (embedding, tokens).

"""
    config = model.config
    return use + (
        NOTICE if isinstance(config, ImportedConfig) else model_card(config).partition("---\n")[2].partition("---\n")[2]
    )
