"""Draws of virtual patients and of the exposures made of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.phantom.params import AnatomyParams, ExposureParams, Range

FIELD_KNOTS = (6, 6, 5)
"""Control points of the random displacement: left-right, up, depth."""
MAX_SD = 2.0
"""Normal draws are cut here: nobody is folded."""

View = Literal["PA", "AP"]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Shape and tissue of one virtual patient: the same in all of its images."""

    scale: npt.NDArray[np.float64]
    taper: float
    kyphosis_mm: float
    scoliosis_mm: float
    scoliosis_phase: float
    diaphragm_mm: float
    diaphragm_side_mm: float
    field_mm: npt.NDArray[np.float64]
    """[*FIELD_KNOTS, 3] displacements."""
    heart: float
    bone_weight: float
    lung_density: float
    fat_mm: float
    breast_mm: float


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Pose, beam and film of one image."""

    view: View
    source_distance_mm: float
    rotation_deg: npt.NDArray[np.float64]
    """Pitch (about left-right), roll (about depth), yaw (about the height)."""
    field_of_view_mm: float
    top_edge_mm: float
    scatter: float
    noise: float
    gamma: float
    noise_seed: int


def draw_patient(params: AnatomyParams, rng: np.random.Generator) -> Patient:
    """Draw one virtual patient with a heart of normal size."""
    field_sd = _uniform(rng, params.field_sd_mm)
    has_breast = rng.random() < params.breast_fraction
    return Patient(
        scale=np.exp([_normal(rng, sd) for sd in params.scale_sd]),
        taper=_normal(rng, params.taper_sd),
        kyphosis_mm=_normal(rng, params.kyphosis_sd_mm),
        scoliosis_mm=_normal(rng, params.scoliosis_sd_mm),
        scoliosis_phase=float(rng.uniform(0, np.pi)),
        diaphragm_mm=_normal(rng, params.diaphragm_sd_mm),
        diaphragm_side_mm=_normal(rng, params.diaphragm_side_sd_mm),
        field_mm=field_sd * rng.standard_normal((*FIELD_KNOTS, 3)).clip(-MAX_SD, MAX_SD),
        heart=_uniform(rng, params.heart),
        bone_weight=_uniform(rng, params.bone_weight),
        lung_density=_uniform(rng, params.lung_density),
        fat_mm=_uniform(rng, params.fat_mm),
        breast_mm=_uniform(rng, params.breast_mm) * has_breast,
    )


def draw_exposure(params: ExposureParams, rng: np.random.Generator) -> Exposure:
    """Draw one image's pose, beam and film."""
    view: View = "AP" if rng.random() < params.ap_fraction else "PA"
    return Exposure(
        view=view,
        source_distance_mm=params.source_distance_ap_mm if view == "AP" else params.source_distance_pa_mm,
        rotation_deg=np.array([_normal(rng, sd) for sd in params.rotation_sd_deg]),
        field_of_view_mm=_uniform(rng, params.field_of_view_mm),
        top_edge_mm=_uniform(rng, params.top_edge_mm),
        scatter=_uniform(rng, params.scatter),
        noise=_uniform(rng, params.noise),
        gamma=_uniform(rng, params.gamma),
        noise_seed=int(rng.integers(2**32)),
    )


def _uniform(rng: np.random.Generator, ends: Range) -> float:
    return float(rng.uniform(*ends))


def _normal(rng: np.random.Generator, sd: float) -> float:
    return float(np.clip(rng.standard_normal(), -MAX_SD, MAX_SD) * sd)
