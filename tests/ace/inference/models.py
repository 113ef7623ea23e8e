"""Finished models in a folder, too small to be good: random weights in the architectures of the three layouts."""

from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from ace.models.backbone import build_backbone
from ace.models.folder import FORMAT_VERSION
from ace.models.model_config import TrainedConfig
from ace.models.networks import Branches, Student, Teacher
from ace.models.params import BackboneParams, GlobalHeadParams, LocalHeadParams, LogitParams
from ace.pretrain.model_folder import save_model
from shards.core.grid import GridSpec, Scale
from shards.core.normalisation import Levels

ROOT = Path(__file__).parents[3]
BACKBONES: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}, 4),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 8, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4},
        8,
    ),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}, 2),
}
"""timm's name, its arguments, and t; every crop is 64 px and every token has 16 channels."""
CROP_PX, DIM = 64, 16


def mix(weight: float, mean: Levels, std: Levels) -> dict[str, Any]:
    return {"mix": {"weight": weight, "mean": mean, "std": std}}


def write_model(
    folder: Path,
    kind: str = "vit",
    *,
    in_channels: int = 1,
    token_activation: str = "relu",
    objective: str = "ace",
    precision: str = "fp32",
    is_whitened: bool = False,
    batches: dict[str, Any] | None = None,
) -> Path:
    """A model whose teacher is not its student."""
    demo = YAML(typ="safe", pure=True).load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))["pretrain"]
    name, model_args, t = BACKBONES[kind]
    backbone = {
        **demo["backbone"],
        "name": name,
        "model_args": model_args,
        "in_channels": in_channels,
        "token_activation": token_activation,
    }
    spec = GridSpec(
        n=2 * t, cell_px=CROP_PX // t, t=t, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85
    )
    torch.manual_seed(1)
    student = Student(
        build_backbone(BackboneParams.from_params(backbone, "backbone"), spec),
        branches=Branches(global_=False, decomposition=True, composition=False),
        scales=[(2, 2)],
        global_head=GlobalHeadParams.from_params(demo["global_head"], "global_head"),
        local_head=LocalHeadParams.from_params(demo["local_head"], "local_head"),
        composer="mean",
        decomposer="linear",
        logits=LogitParams.from_params(demo["matching_loss"]["logits"], "logits"),
    )
    teacher = Teacher(student)
    with torch.no_grad():
        # At initialisation norms and biases are 1 and 0: an export that lost them would go unnoticed.
        for parameter in (*student.backbone.parameters(), *teacher.backbone.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    config = {
        "format_version": FORMAT_VERSION,
        "params": {
            "pretrain": {**demo, "backbone": backbone, "objective": objective, "precision": precision},
            "grid": spec.to_json(),
            "batches": batches or {"a-b000": mix(1.0, 0.4, 0.2)},
        },
        "shards": [
            {
                "batch": "a-b000",
                "weight": 1.0,
                "fingerprint": "0" * 64,
                "num_images": 7,
                "num_patients": 5,
                "shards": [],
            }
        ],
        "start_from": {},
        "steps": 3,
        "num_processes": 1,
        "device": "cpu",
        "versions": {"torch": torch.__version__},
    }
    whitening = torch.eye(DIM) + 0.2 * torch.randn(DIM, DIM)  # unlike a fitted one, not its own transpose
    described = TrainedConfig.model_validate(config)
    save_model(folder, student, teacher, described, whitening={"teacher": whitening} if is_whitened else {})
    return folder
