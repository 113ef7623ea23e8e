"""Rays through the warped chest: line integrals of attenuation, and which structures each ray meets."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from shards.phantom.anatomy import Anatomy, weigh_tissue
from shards.phantom.labels import LUNG_LEFT, LUNG_RIGHT, STRUCTURES
from shards.phantom.patients import Exposure, Patient
from shards.phantom.warp import GRID_NODES, interpolation_matrix, path_length, warp_grid

WATER_PER_MM = 0.0205
FAT_DENSITY = 0.92
SKIN_ATTENUATION = 0.4
"""Added layers thin out where the body's own attenuation falls to this."""
BREAST_MM = np.array([72.0, 95.0, -172.0])
"""Centre of the left breast: left, front, up."""
BREAST_RADII_MM = (58.0, 62.0)
MIDLINE_MM = -8.0

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Samples [depth, row, col] along the rays of one image, back to front."""

    grid: npt.NDArray[np.float64]
    """Coarse map of `warp_grid`, for landmarks."""
    units: Float[Tensor, "depth axis row col"]
    """Left, front, up in units of half the scan about its middle."""
    middle_mm: npt.NDArray[np.float64]
    half_mm: npt.NDArray[np.float64]
    labels: UInt8[Tensor, "depth row col"]
    density: Float[Tensor, "depth row col"]
    """Attenuation relative to water, bone and lung weighted for the patient."""
    step_mm: Float[Tensor, "row col"]
    """Length of ray that one sample stands for."""

    def place_mm(self, axis: int) -> Float[Tensor, "depth row col"]:
        """Return one coordinate of the samples in the scan, in mm: 0 left, 1 front, 2 up."""
        return self.units[:, axis] * float(self.half_mm[axis]) + float(self.middle_mm[axis])

    @cached_property
    def lung(self) -> dict[str, Bool[Tensor, "depth row col"]]:
        """Boolean samples inside the left and the right lung."""
        return {side: _is_any(self.labels, lobes) for side, lobes in (("left", LUNG_LEFT), ("right", LUNG_RIGHT))}


@dataclass(frozen=True)
class Raster:
    """Numbers of rays and samples."""

    num_rows: int
    num_cols: int
    num_depths: int


def cast_rays(anatomy: Anatomy, patient: Patient, exposure: Exposure, raster: Raster) -> Rays:
    """Sample the chest of one patient along the rays of one exposure."""
    density = weigh_tissue(anatomy, patient.bone_weight, patient.lung_density)
    grid = warp_grid(patient, exposure)
    axes = [(np.arange(num) + 0.5) / num for num in (raster.num_rows, raster.num_cols, raster.num_depths)]
    rows, cols, depths = (
        torch.from_numpy(interpolation_matrix(axis, num)).float() for axis, num in zip(axes, GRID_NODES, strict=True)
    )
    last_voxel = np.array(density.shape[::-1]) - 1
    voxels = (grid - anatomy.origin_mm) / anatomy.spacing_mm
    nodes = torch.from_numpy(voxels * (2 / last_voxel) - 1).float()
    # grid_sample's units: -1 and 1 are the centres of the outermost voxels.
    units = (rows @ torch.einsum("dk,ijkc->dcij", depths, nodes)) @ cols.T
    sampled = F.grid_sample(density[None, None], units.movedim(1, -1)[None], padding_mode="border", align_corners=True)[
        0, 0
    ]
    left, front, up = (
        units[:, axis].add(1).mul_(last / 2).round_().clamp_(0, last).int() for axis, last in enumerate(last_voxel)
    )
    index = up.mul_(density.shape[1]).add_(front).mul_(density.shape[2]).add_(left)
    labels = torch.from_numpy(anatomy.labels.reshape(-1).take(index.numpy()))
    half_mm = anatomy.spacing_mm * last_voxel / 2
    step = torch.from_numpy(path_length(patient, exposure, *axes[:2])).float() / raster.num_depths
    return Rays(
        grid=grid,
        units=units,
        middle_mm=anatomy.origin_mm + half_mm,
        half_mm=half_mm,
        labels=labels,
        density=sampled,
        step_mm=step,
    )


def integrate(rays: Rays, density: Tensor) -> Float[Tensor, "row col"]:
    """Add up the attenuation along each ray."""
    return WATER_PER_MM * rays.step_mm * density.sum(0)


def soft_layers(rays: Rays, patient: Patient, attenuation: Tensor) -> Float[Tensor, "row col"]:
    """Compute the attenuation of what the scanned person has little of: fat around the chest, and breasts."""
    in_body = 1 - torch.exp(-attenuation / SKIN_ATTENUATION)
    fat = WATER_PER_MM * FAT_DENSITY * patient.fat_mm * in_body
    if patient.breast_mm == 0:
        return fat
    plane = int(0.85 * len(rays.units))
    left, up = rays.place_mm(0)[plane] - MIDLINE_MM, rays.place_mm(2)[plane]
    across = ((left.abs() - BREAST_MM[0]) / BREAST_RADII_MM[0]) ** 2 + ((up - BREAST_MM[2]) / BREAST_RADII_MM[1]) ** 2
    profile: Tensor = (1 - across).clamp(min=0) ** 0.7
    return fat + WATER_PER_MM * patient.breast_mm * profile * in_body


def project_structures(rays: Rays) -> dict[str, Mask]:
    """Project every structure to a mask [row, col] on the raster of rays, empty ones included."""
    bits = np.zeros(256, dtype=np.int32)
    for bit, numbers in enumerate(STRUCTURES.values()):
        bits[list(numbers)] |= 1 << bit
    met = np.bitwise_or.reduce(bits[rays.labels.numpy()], axis=0)
    masks = {name: (met >> bit & 1).astype(bool) for bit, name in enumerate(STRUCTURES)}
    below = masks["below_diaphragm"]
    # As radiologists draw it: the lung that no organ below the diaphragm hides.
    fields = {f"lungfield_{side}": masks[f"lung_{side}"] & ~below for side in ("left", "right")}
    return fields | masks


def project(inside: Bool[Tensor, "depth row col"]) -> Mask:
    """Project boolean samples to the mask [row, col] of the rays that meet any of them."""
    return inside.any(0).numpy()


def _is_any(labels: Tensor, wanted: tuple[int, ...]) -> Tensor:
    return torch.isin(labels, torch.tensor(wanted, dtype=torch.uint8))
