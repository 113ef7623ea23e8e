"""The shipped chest: CT and labels on one raster in millimetres, with its landmarks; verified by hash when loaded."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from shards.core.errors import SourceError
from shards.phantom.labels import LUNG

ASSET = Path(__file__).parent / "asset"
CT_FILE, LABELS_FILE, SPACING_FILE, NOTICE_FILE = "ct.png", "labels.png", "anatomy.json", "NOTICE"
HASHES_FILE = "SHA256SUMS"

# 8 bits for -1000..1800 HU: fine steps where soft tissue lies, coarse ones where only the sum along a ray matters.
CODE_KNOTS = (0.0, 48.0, 80.0, 125.0, 165.0, 255.0)
HU_KNOTS = (-1000.0, -500.0, -150.0, 150.0, 450.0, 1800.0)

BONE_HU = 150.0
"""Attenuation above this is kept apart, so that bone can be weighted (the tube's voltage)."""
SIDE_PAD_MM = 17.0


def hu_to_code(hu: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Compress Hounsfield units to bytes."""
    codes: npt.NDArray[np.float64] = np.interp(hu, HU_KNOTS, CODE_KNOTS)
    return np.rint(codes).astype(np.uint8)


def code_to_hu() -> npt.NDArray[np.float32]:
    """Return the Hounsfield units of the 256 codes."""
    return np.interp(np.arange(256), CODE_KNOTS, HU_KNOTS).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """One chest on a raster with axes up, front, left, as `grid_sample` wants; places are (left, front, up) in mm."""

    soft: Float[Tensor, "up front left"]
    """Attenuation relative to water, cut at 150 HU."""
    bone: Float[Tensor, "up front left"]
    """Attenuation that bone has above that."""
    lung: Float[Tensor, "up front left"]
    """`soft` inside the lungs, 0 elsewhere."""
    labels: npt.NDArray[np.uint8]
    """[up, front, left] TotalSegmentator numbers."""
    origin_mm: npt.NDArray[np.float64]
    """Centre of the first voxel: left, front, up."""
    spacing_mm: npt.NDArray[np.float64]
    landmarks_mm: dict[str, npt.NDArray[np.float64]]


def load_anatomy(folder: Path = ASSET) -> Anatomy:
    """Load the asset, verified and expanded; takes about a second.

    Raises:
        SourceError: a file is missing or is not the one that was shipped.
    """
    verify(folder)
    description = json.loads((folder / SPACING_FILE).read_text(encoding="utf-8"))
    num_left, num_front, num_up = description["shape"]
    spacing = np.array(description["spacing_mm"])
    pad = round(SIDE_PAD_MM / spacing[0])

    codes = _read_stack(folder / CT_FILE, num_front, num_left)
    hu = _double_slices(code_to_hu()[codes])
    labels = _read_stack(folder / LABELS_FILE, num_front, num_left)
    if len(labels) != num_up or hu.shape != labels.shape:
        raise SourceError(f"{folder}: CT {hu.shape} and labels {labels.shape} do not make {description['shape']}")
    # The outermost columns are air: a ray that leaves the raster reads its nearest voxel.
    sides = ((0, 0), (0, 0), (pad, pad))
    hu = np.pad(np.pad(hu, sides, mode="edge"), ((0, 0), (0, 0), (1, 1)), constant_values=-1000)
    labels = np.pad(labels, ((0, 0), (0, 0), (pad + 1, pad + 1)))
    soft = torch.from_numpy(1 + np.minimum(hu, np.float32(BONE_HU)) / 1000)
    return Anatomy(
        soft=soft,
        bone=torch.from_numpy(np.maximum(hu - np.float32(BONE_HU), 0) / 1000),
        lung=soft * torch.from_numpy(np.isin(labels, LUNG)),
        labels=labels,
        origin_mm=np.array(description["origin_mm"]) - (spacing[0] * (pad + 1), 0, 0),
        spacing_mm=spacing,
        landmarks_mm={name: np.array(place) for name, place in description["landmarks_mm"].items()},
    )


@lru_cache(maxsize=1)
def weigh_tissue(anatomy: Anatomy, bone_weight: float, lung_density: float) -> Float[Tensor, "up front left"]:
    """Compute the relative attenuation of one patient's tissue.

    It is kept for the patient's next image, so do not write to it.
    """
    weighted = torch.add(anatomy.soft, anatomy.bone, alpha=bone_weight)
    return weighted.add_(anatomy.lung, alpha=lung_density - 1)


def asset_hash(folder: Path = ASSET) -> str:
    """Hash the asset's list of hashes, which names the version of the chest."""
    return hashlib.sha256((folder / HASHES_FILE).read_bytes()).hexdigest()


def write_hashes(folder: Path) -> None:
    """Record the sha256 of the asset's files as `sha256sum` does."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in (CT_FILE, LABELS_FILE, SPACING_FILE)]
    (folder / HASHES_FILE).write_text("".join(lines), encoding="utf-8")


def verify(folder: Path) -> None:
    """Compare the asset's files with their recorded hashes.

    Raises:
        SourceError: naming the file that is missing or differs.
    """
    hashes = folder / HASHES_FILE
    if not hashes.is_file():
        raise SourceError(f"{hashes}: missing; the phantom's asset is incomplete, restore it with git")
    for line in hashes.read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        path = folder / name
        if not path.is_file():
            raise SourceError(f"{path}: missing; the phantom's asset is incomplete, restore it with git")
        if (found := _sha256(path)) != expected:
            raise SourceError(
                f"{path}: sha256 {found[:12]}, expected {expected[:12]}; the file is damaged, restore it with git"
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_stack(path: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.uint8).reshape(-1, height, width)


def _double_slices(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Double the slices, the new ones by cubic convolution."""
    padded = np.pad(hu, ((1, 1), (0, 0), (0, 0)), mode="edge")
    between = (9 * (padded[1:-2] + padded[2:-1]) - (padded[:-3] + padded[3:])) / 16
    doubled = np.empty((2 * len(hu) - 1, *hu.shape[1:]), dtype=np.float32)
    doubled[::2], doubled[1::2] = hu, np.clip(between, -1000, HU_KNOTS[-1])
    return doubled
