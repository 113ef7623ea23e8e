"""A whole project in seconds: drawn chests in the phantom's layout, real shards of them, a tiny model, its log."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from ace.evaluation.params import parse_encoders
from ace.evaluation.setting import StagePaths
from ace.models.backbone import build_backbone
from ace.models.folder import FORMAT_VERSION
from ace.models.model_config import TrainedConfig
from ace.models.networks import Branches, Student, Teacher
from ace.models.params import BackboneParams, GlobalHeadParams, LocalHeadParams, LogitParams
from ace.pretrain.model_folder import save_model
from ace.published.importing import import_timm, one_import
from shards.build.stage import build_shards
from shards.core.params import GridParams, PhantomSourceParams, ShardParams
from tests.support.datasets import QUALITY, Here

BATCH = "phantom-b000"
ENCODERS = ("trained", "untrained", "imagenet")
GRID = GridParams.from_params(
    {"n": 8, "cell_px": 8, "t": 4, "scales": [{"k": 2, "l": 2, "weight": 1.0}], "min_overlap": 0.5}
    | {"min_jitter_area": 0.85},
    "grid",
)
SHARD = {
    "image_format": "png",
    "jpg_quality": 95,
    "num_images_per_shard": 16,
    "num_bank_pairs": 2,
    "seed": 0,
    "splits": {"train": 0.3, "val": 0.1, "test": 0.6},
    "foreground": {"min_mean": 8.0, "min_std": 4.0},
    "max_source_megapixels": 100.0,
    "max_quarantined_fraction": 0.0,
    "quality": QUALITY,
}
EVALUATE: dict[str, Any] = {
    "batch": BATCH,
    "split": "test",
    "seed": 0,
    "accept_shared_images": False,
    "max_patients": 16,
    "images_per_forward": 32,
    "dense": {"locations_per_cell": 2, "window_step_cells": 2},
    "properties": {
        "composition": {
            "regions_per_patient": 2,
            "mismatches_per_region": 4,
            "min_side": 0.4,
            "max_side": 0.7,
            "max_mismatch_iou": 0.2,
            "cuts": ["2x2", "3x3", "random"],
            "further_regions_per_patient": 2,
        },
        "decomposition": {
            "num_draws": 20,
            "num_candidates": 8,
            "regions_per_patient": 2,
            "min_side": 0.3,
            "max_side": 0.8,
            "fills": ["black", "mean", "white", "noise", "tissue"],
            "further_candidates": [4, 128],
        },
        "correspondence": {"num_patients": 6, "keys_per_query": 2, "max_landmarks": 64, "success_px": 32.0},
        "colours": {},
        "labels": {},
        "retrieval": {"num_patients": 6, "num_landmarks": 3, "side": 0.3, "further_sides": [0.2]},
        "symmetry": {"num_patients": 4, "max_landmarks": 4},
        "separation": {"num_patients": 6, "num_landmarks": 4},
        "interpolation": {"num_patients": 4, "keys_per_query": 2, "side": 0.4},
        "cosegmentation": {"num_patients": 4, "num_clusters": 5},
        "explorer": {"num_patients": 6, "num_mirrored": 4, "num_components": 16},
    },
    "bootstrap": {"num_resamples": 100, "level": 0.95},
    "num_examples": 3,
    "checks": {"trained.compositionality.low": {"min": 0.0}},
}
PUBLISHED = "test_efficientnet"
BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False},
    "in_channels": 1,
    "token_activation": "relu",
    "drop_path": 0.0,
    "weights": None,
}


def draw_chest(rng: np.random.Generator, size_px: int = 96) -> tuple[Image.Image, dict[str, tuple[float, float]]]:
    """A torso with lungs, heart and ribs, somewhere and of some size; landmarks move with it."""
    scale, (down, right) = rng.uniform(0.85, 1.1), rng.uniform(-5, 5, 2)

    def at(row: float, col: float) -> tuple[float, float]:
        center = size_px / 2
        return center + down + (row - 0.5) * size_px * scale, center + right + (col - 0.5) * size_px * scale

    def box(row0: float, col0: float, row1: float, col1: float) -> tuple[float, float, float, float]:
        (top, left), (bottom, end) = at(row0, col0), at(row1, col1)
        return left, top, end, bottom

    image = Image.new("L", (size_px, size_px), 4)
    draw = ImageDraw.Draw(image)
    draw.ellipse(box(0.05, 0.08, 1.1, 0.92), fill=150)
    draw.ellipse(box(0.15, 0.15, 0.8, 0.45), fill=50)
    draw.ellipse(box(0.15, 0.55, 0.8, 0.85), fill=50)
    draw.ellipse(box(0.45, 0.42, 0.8, 0.72), fill=190)
    for row in (0.25, 0.37, 0.49, 0.61):
        draw.arc(box(row, 0.12, row + 0.2, 0.88), 190, 350, fill=110, width=2)
    noisy = np.asarray(image) + rng.normal(0, 4, (size_px, size_px))
    marks = {"apex_left": (0.18, 0.3), "apex_right": (0.18, 0.7), "heart": (0.62, 0.57), "dome_left": (0.78, 0.3)}
    marks |= {"dome_right": (0.78, 0.7), "carina": (0.4, 0.5)}
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), {name: at(*place) for name, place in marks.items()}


def draw_lung(marks: dict[str, tuple[float, float]]) -> Image.Image:
    """The mask of the left lung of a drawn chest, from its landmarks."""
    (top, col), (bottom, _) = marks["apex_left"], marks["dome_left"]
    mask = Image.new("L", (96, 96), 0)
    ImageDraw.Draw(mask).ellipse((col - 12, top - 2, col + 12, bottom + 2), fill=255)
    return mask


def write_dataset(root: Path, num_patients: int, *, has_landmarks: bool = True) -> None:
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks/lung_left").mkdir(parents=True)
    labels, landmarks = [], []
    for patient in range(num_patients):
        for number in range(1 + patient % 2):
            name = f"p{patient:04d}-i{number}"
            image, marks = draw_chest(rng)
            image.save(root / "images" / f"{name}.png")
            if has_landmarks:
                draw_lung(marks).save(root / "masks/lung_left" / f"{name}.png")
            labels.append([name, f"p{patient:04d}", f"p{patient:04d}-s0", "PA", patient % 2 == 0, patient % 4 == 0])
            landmarks += [[name, mark, row, col] for mark, (row, col) in marks.items() if has_landmarks]
    header = ["image_id", "patient_id", "study_id", "view", "nodule", "cardiomegaly"]
    _write_csv(root / "labels.csv", header, [[int(v) if isinstance(v, bool) else v for v in row] for row in labels])
    _write_csv(root / "landmarks.csv", ["image_id", "landmark", "row", "col"], landmarks)
    facts = {
        "name": "drawn chests",
        "notice": "Drawn for a test.",
        "limits": ["Nobody is in these pictures."],
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    Image.fromarray(rng.integers(0, 255, (60, 90), dtype=np.uint8)).save(root / "contact_sheet.png")


def write_model(folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    backbone = BackboneParams.from_params(BACKBONE, "backbone")
    student = Student(
        build_backbone(backbone, GRID.spec),
        branches=Branches(global_=True, decomposition=True, composition=True),
        scales=[(2, 2)],
        global_head=GlobalHeadParams(hidden_dim=8, bottleneck_dim=4, out_dim=16),
        local_head=LocalHeadParams(form="linear", hidden_dim=8),
        composer="mean",
        decomposer="linear",
        logits=LogitParams(scale=10.0, bias=-5.0, learnable=True),
    )
    weights = {"global": 0.1, "decomposition": 0.5, "composition": 0.5, "removal": 0.1}
    pretrain: dict[str, Any] = {"backbone": BACKBONE, "loss_weights": weights, "epochs": 4, "batch_size": 8}
    pretrain["objective"] = "ace"
    fills = {"black": 1.0, "mean": 1.0, "grey": 1.0, "noise": 1.0}
    erase = {"probability": 0.25, "min_side": 0.3, "max_side": 0.8, "max_rectangles": 1, "max_aspect": 1.0}
    pretrain["augment"] = {"erase": {**erase, "fills": fills}}
    pretrain |= {"objective": "ace", "precision": "fp32", "start_from": None}
    params: dict[str, Any] = {"pretrain": pretrain, "grid": GRID.spec.to_json()}
    params["batches"] = {BATCH: {"mix": {"weight": 1.0, "mean": 0.5, "std": 0.25}}}
    folder.mkdir(parents=True)
    config = {
        "format_version": FORMAT_VERSION,
        "params": params,
        "shards": [],
        "start_from": {},
        "steps": 200,
        "num_processes": 1,
        "device": "cpu",
    }
    config["versions"] = {"torch": torch.__version__}
    save_model(folder, student, Teacher(student), TrainedConfig.model_validate(config))
    steps = np.arange(0, 200, 5)
    rows = [{"step": int(s), "epoch": int(s) // 50, "loss": 2 - s / 200, "lr": 1e-3, "images_per_s": 90} for s in steps]
    for row in rows:
        left = 1 - row["step"] / 250
        row |= {"loss_removal": left, "removal_erased_length": left, "removal_change_outside": left / 2}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_project(root: Path, *, num_patients: int = 40, has_landmarks: bool = True) -> Path:
    """Everything the stages `phantom`, `shard` and `pretrain` leave behind, below `root`."""
    write_dataset(root / "data/phantom", num_patients, has_landmarks=has_landmarks)
    source = PhantomSourceParams(kind="phantom", dep=str(root / "data/phantom"))
    shard = ShardParams.from_params(SHARD, "shard")
    build_shards(BATCH, source, GRID, shard, root / "data/shards" / BATCH, execution=Here())
    write_model(root / "models/ace", seed=3)
    write_imported(root / "models/imagenet")
    return root


def write_imported(folder: Path, *, t: int = GRID.t) -> None:
    """An encoder that others published, as the stage `import` leaves it: timm's smallest, with random weights."""
    torch.manual_seed(5)
    file = folder.with_name("published.safetensors")
    save_file(timm.create_model(PUBLISHED).state_dict(), file)
    stride = {"output_stride": GRID.spec.crop_px // t}
    params = one_import(file, PUBLISHED, stride, in_channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    import_timm(params, t, folder, where="imports.imagenet")


def with_properties(**sections: Any) -> dict[str, Any]:
    """EVALUATE with other sections of some properties; None leaves a property out."""
    return EVALUATE | {"properties": EVALUATE["properties"] | sections}


def encoders_of(project: Path, *, model: Path | None = None, names: tuple[str, ...] = ENCODERS) -> dict[str, Any]:
    """The section `encoders`: some of the three of the demo, the first two of one model."""
    own = {"model": str(model or project / "models/ace")}
    every = {
        "trained": {**own, "network": "teacher"},
        "untrained": {**own, "network": "untrained"},
        "imagenet": {"model": str(project / "models/imagenet"), "network": "teacher"},
        "student": {**own, "network": "student"},
    }
    return parse_encoders({name: every[name] for name in names}, "params.yaml")


def paths_of(project: Path, out: Path, *, shards: Path | None = None) -> StagePaths:
    """Where the stages write, below `out`."""
    return StagePaths(
        shards=shards or project / "data/shards",
        project=Path(),
        cohort=out / "cohort.json",
        independence=out / "independence.json",
        answers=out / "answers",
        metrics=out / "properties.json",
        evidence=out / "evidence",
    )


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
