"""Simulated findings: each changes the density of lung samples and tells which samples it fills.

A finding is placed in the scan's millimetres, so it sits at the same anatomical place in every image of a study.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from shards.phantom.anatomy import Anatomy
from shards.phantom.labels import LUNG_LEFT, LUNG_RIGHT
from shards.phantom.params import FindingParams
from shards.phantom.projection import Rays

Kind = Literal["nodule", "pleural_effusion", "pneumothorax", "consolidation", "cardiomegaly"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Side = Literal["left", "right"]
SIGN = {"left": 1.0, "right": -1.0}
LUNGS = {"left": LUNG_LEFT, "right": LUNG_RIGHT}

MIDLINE_MM = -8.0
HILUM_MM = {"left": (28.0, -15.0, -122.0), "right": (-56.0, -15.0, -122.0)}
NUM_PLACE_DRAWS = 200
CONSOLIDATED = (0.75, 1.05)
"""Share of the air that is replaced in the middle of a consolidation."""
PLEURA_DENSITY = 0.14
SMOOTHING = (5, 9)
"""Voxels (up, left) that the lung's silhouette is averaged over, twice: about 6 mm."""


class LungFinding(Protocol):
    """A finding inside one lung."""

    fills_rim: ClassVar[bool]
    """The samples beside the lung change too: they are half air, and fluid would leave a dark seam there."""

    @property
    def side(self) -> Side:
        """The lung it is in."""

    def change(
        self, places_mm: Float[Tensor, "sample 3"], density: Float[Tensor, " sample"]
    ) -> tuple[Float[Tensor, " sample"], Bool[Tensor, " sample"]]:
        """Return new densities of lung samples, and which of them the finding fills."""


def lay(finding: LungFinding, rays: Rays) -> tuple[Float[Tensor, "depth row col"], Bool[Tensor, "depth row col"]]:
    """Lay a finding into the lung: return the density of all samples with it, and the samples it fills."""
    lung = rays.lung[finding.side]
    region = lung
    if finding.fills_rim:
        region = F.max_pool3d(lung[None].float(), 3, 1, 1)[0] > 0
    places = torch.stack([rays.place_mm(axis)[region] for axis in range(3)], dim=1)
    changed, is_filled = finding.change(places, rays.density[region])
    density, inside = rays.density.clone(), torch.zeros_like(lung)
    density[region], inside[region] = changed, is_filled
    return density, inside & lung


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """A lobulated ball of soft tissue."""

    fills_rim: ClassVar[bool] = False

    side: Side
    center_mm: npt.NDArray[np.float64]
    radius_mm: float
    waves: npt.NDArray[np.float64]
    """[num, 4] direction and phase of the surface's lobes."""

    def change(self, places_mm: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the lobed surface with soft tissue."""
        offset = places_mm - torch.from_numpy(self.center_mm).float()
        distance = offset.norm(dim=1)
        direction = offset / distance.clamp(min=1e-3)[:, None]
        surface = self.radius_mm * (1 + 0.1 * _waves(direction, self.waves))
        depth = surface - distance
        share = torch.sigmoid(depth / 0.8)
        return density + share * (1.04 - density).clamp(min=0), depth > 0


@dataclass(frozen=True)
class Effusion:
    """Fluid up to a level, higher along the side wall (the meniscus)."""

    fills_rim: ClassVar[bool] = True

    side: Side
    level_mm: float
    """Height in the scan."""

    def change(self, places_mm: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the lung below the surface with water."""
        lateral = SIGN[self.side] * (places_mm[:, 0] - MIDLINE_MM)
        meniscus = 34 * ((lateral - 65) / 60).clamp(0, 1.2) ** 2
        depth = self.level_mm + meniscus - places_mm[:, 2]
        share = torch.sigmoid(depth / 1.5)
        return density + share * (1.02 - density).clamp(min=0), depth > 0


@dataclass(frozen=True, kw_only=True)
class Pneumothorax:
    """Air above and beside a lung that has shrunk towards its hilum, with the line of the pleura.

    The lung's frontal silhouette shrinks, so that air and line lie one behind the other for a beam from the front.
    """

    fills_rim: ClassVar[bool] = False

    side: Side
    thickness_mm: float
    silhouette: Float[Tensor, "1 1 up left"]
    """Smooth indicator of the lung seen from the front."""
    middle_mm: npt.NDArray[np.float64]
    half_mm: npt.NDArray[np.float64]

    def change(self, places_mm: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """Put air where the full lung was, the pleura's line, and a slightly denser rest."""
        hilum = HILUM_MM[self.side]
        frontal = places_mm[:, [0, 2]]
        lateral, above = SIGN[self.side] * (frontal[:, 0] - hilum[0]), frontal[:, 1] - hilum[2]
        outwards = torch.stack([lateral, above], dim=1).clamp(min=0)
        distance = outwards.norm(dim=1, keepdim=True)
        height = ((frontal[:, 1:] + 245) / 170).clamp(0, 1)
        beside = (lateral[:, None] / 25 + 1).clamp(0, 1)
        gap = self.thickness_mm * (3 - 2 * height) * height**2 * (distance / 30).clamp(0, 1) * beside
        # Where this sample would lie in the lung at full size; outside of it there is air now.
        before = frontal + outwards / distance.clamp(min=1) * gap * torch.tensor([SIGN[self.side], 1.0])
        units = (before - torch.from_numpy(self.middle_mm).float()) / torch.from_numpy(self.half_mm).float()
        in_lung = F.grid_sample(self.silhouette, units[None, None], padding_mode="border", align_corners=True).flatten()
        retracts = (gap[:, 0] / 4).clamp(0, 1)
        air = torch.sigmoid((0.5 - in_lung) / 0.05) * retracts
        line = torch.exp(-(((in_lung - 0.6) / 0.12) ** 2)) * retracts
        shrunk = density * (1 + 0.004 * self.thickness_mm)
        return shrunk * (1 - air) + PLEURA_DENSITY * line, (air > 0.5) & (gap[:, 0] > 2)


@dataclass(frozen=True, kw_only=True)
class Consolidation:
    """Lung filled in a cloud with a texture of its own."""

    fills_rim: ClassVar[bool] = False

    side: Side
    center_mm: npt.NDArray[np.float64]
    size_mm: float
    amount: float
    waves: npt.NDArray[np.float64]

    def change(self, places_mm: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """Put fluid instead of air, most in the middle."""
        offset = places_mm - torch.from_numpy(self.center_mm).float()
        cloud = torch.exp(-1.1 * (offset.norm(dim=1) / self.size_mm) ** 2)
        texture = 1 + 0.6 * _waves(places_mm / 5, self.waves)
        share = (self.amount * cloud * texture).clamp(0, 1)
        return density + share * (1.03 - density).clamp(min=0), cloud > 0.4


def draw_lung_finding(kind: Kind, anatomy: Anatomy, params: FindingParams, rng: np.random.Generator) -> LungFinding:
    """Draw a finding of one of the kinds that lie in a lung (all but cardiomegaly)."""
    side: Side = "left" if rng.random() < 0.5 else "right"
    match kind:
        case "nodule":
            radius = float(rng.uniform(*params.nodule_radius_mm))
            center = _draw_place(anatomy, side, 0.9 * radius, rng)
            return Nodule(side=side, center_mm=center, radius_mm=radius, waves=_draw_waves(rng, 5, 3.0))
        case "pleural_effusion":
            return Effusion(side, float(anatomy.origin_mm[2] + rng.uniform(*params.effusion_level_mm)))
        case "pneumothorax":
            thickness_mm = float(rng.uniform(*params.pneumothorax_mm))
            silhouette, middle_mm, half_mm = _silhouette(anatomy, side)
            return Pneumothorax(
                side=side, thickness_mm=thickness_mm, silhouette=silhouette, middle_mm=middle_mm, half_mm=half_mm
            )
        case "consolidation":
            size = float(rng.uniform(*params.consolidation_mm))
            center = _draw_place(anatomy, side, 0.4 * size, rng)
            return Consolidation(
                side=side,
                center_mm=center,
                size_mm=size,
                amount=float(rng.uniform(*CONSOLIDATED)),
                waves=_draw_waves(rng, 8, 1.0),
            )
        case _:
            raise ValueError(f"{kind} does not lie in a lung")


def _lung_places(anatomy: Anatomy, side: Side) -> npt.NDArray[np.float64]:
    """Return the millimetres of every so many voxels of a lung."""
    strides = (4, 3, 8)
    up, front, left = np.nonzero(
        np.isin(anatomy.labels[tuple(slice(None, None, step) for step in strides)], LUNGS[side])
    )
    voxels = np.stack([left * strides[2], front * strides[1], up * strides[0]], axis=1)
    return anatomy.origin_mm + voxels * anatomy.spacing_mm


def _draw_place(anatomy: Anatomy, side: Side, margin_mm: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a point in the lung whose neighbours at `margin_mm` are in it too, as far as 26 of them tell."""
    places = _lung_places(anatomy, side)
    around = np.array([step for step in np.ndindex(3, 3, 3) if step != (1, 1, 1)]) - 1
    around = margin_mm * around / np.linalg.norm(around, axis=1, keepdims=True)
    for _ in range(NUM_PLACE_DRAWS):
        place = places[rng.integers(len(places))]
        voxels = np.rint((place + around - anatomy.origin_mm) / anatomy.spacing_mm).astype(int)
        voxels = np.clip(voxels, 0, np.array(anatomy.labels.shape[::-1]) - 1)
        if np.isin(anatomy.labels[tuple(voxels.T[::-1])], LUNGS[side]).all():
            break
    return place  # type: ignore[no-any-return]


def _silhouette(anatomy: Anatomy, side: Side) -> tuple[Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the smooth silhouette of a lung from the front, with its middle and half extent in mm (left, up)."""
    seen = torch.from_numpy(np.isin(anatomy.labels, LUNGS[side]).any(1)).float()[None, None]
    smooth = F.avg_pool2d(F.avg_pool2d(seen, SMOOTHING, 1, _half(SMOOTHING)), SMOOTHING, 1, _half(SMOOTHING))
    half = (anatomy.spacing_mm * (np.array(anatomy.labels.shape[::-1]) - 1) / 2)[[0, 2]]
    return smooth, anatomy.origin_mm[[0, 2]] + half, half


def _half(sizes: tuple[int, int]) -> tuple[int, int]:
    return sizes[0] // 2, sizes[1] // 2


def _draw_waves(rng: np.random.Generator, num: int, frequency: float) -> npt.NDArray[np.float64]:
    direction = rng.standard_normal((num, 3))
    direction *= frequency / np.linalg.norm(direction, axis=1, keepdims=True)
    return np.column_stack([direction, rng.uniform(0, 2 * np.pi, num)])


def _waves(places: Float[Tensor, "sample 3"], waves: npt.NDArray[np.float64]) -> Float[Tensor, " sample"]:
    """Sum of plane waves, with a standard deviation of about 1."""
    table = torch.from_numpy(waves).float()
    return torch.sin(places @ table[:, :3].T + table[:, 3]).sum(1) * math.sqrt(2 / len(waves))
