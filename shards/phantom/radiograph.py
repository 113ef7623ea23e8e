"""One radiograph of a study with its exact masks and landmarks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shards.phantom.anatomy import Anatomy
from shards.phantom.film import ToneWindow, develop, expose, tone_window
from shards.phantom.findings import lay
from shards.phantom.params import PhantomParams
from shards.phantom.patients import Exposure, Patient
from shards.phantom.projection import Mask, Raster, Rays, cast_rays, integrate, project, project_structures, soft_layers
from shards.phantom.study import Study
from shards.phantom.warp import locate


@dataclass(frozen=True)
class Radiograph:
    """An image, and everything that is known of it."""

    image: npt.NDArray[np.uint8]
    masks: dict[str, Mask]
    """Every structure by name, and the finding where there is one."""
    landmarks: dict[str, tuple[float, float]]
    """Continuous (row, col) of the landmarks inside the image: pixel (r, c) covers [r, r+1) x [c, c+1)."""


def take_radiograph(anatomy: Anatomy, study: Study, exposure: Exposure, params: PhantomParams) -> Radiograph:
    """Render one exposure of a study."""
    raster = Raster(params.num_ray_rows, params.num_ray_cols, params.num_depth_planes)
    rays = cast_rays(anatomy, study.patient, exposure, raster)
    density = rays.density
    masks = project_structures(rays)
    if study.finding is not None and study.kind is not None:
        density, filled = lay(study.finding, rays)
        masks[study.kind] = project(filled)
    elif study.kind == "cardiomegaly":
        masks[study.kind] = masks["heart"]

    attenuation = _attenuation(rays, density, study.patient, params.size_px)
    signal = develop(attenuation, exposure)
    if study.kind is None:
        window = tone_window(signal, attenuation)
    else:
        # A large finding would shift the window of the whole film, and its label would be written in every pixel.
        window = _twin_window(anatomy, study, rays, exposure, params, raster)
    image = expose(signal, attenuation, window, exposure)
    places = locate(rays.grid, np.array(list(anatomy.landmarks_mm.values())))
    is_inside = np.all((places >= 0) & (places < 1), axis=1)
    pixels = (places[:, :2] * params.size_px).tolist()
    return Radiograph(
        image=image,
        masks={name: enlarge(mask, params.size_px) for name, mask in masks.items()},
        landmarks={
            name: (row, col)
            for name, (row, col), inside in zip(anatomy.landmarks_mm, pixels, is_inside.tolist(), strict=True)
            if inside
        },
    )


def enlarge(mask: Mask, size_px: int) -> Mask:
    """Enlarge a mask from the raster of rays to the image's size, its outline interpolated."""
    share = torch.from_numpy(mask).float()[None, None]
    return (_resize(share, size_px, "bilinear") > 0.5)[0, 0].numpy()


def _attenuation(rays: Rays, density: Tensor, patient: Patient, size_px: int) -> Float[Tensor, "row col"]:
    attenuation = integrate(rays, density)
    attenuation = attenuation + soft_layers(rays, patient, integrate(rays, rays.density))
    return _resize(attenuation[None, None], size_px, "bicubic")[0, 0].clamp(min=0)


def _twin_window(
    anatomy: Anatomy, study: Study, rays: Rays, exposure: Exposure, params: PhantomParams, raster: Raster
) -> ToneWindow:
    """Choose the tone window of the same exposure without the finding."""
    if study.healthy is not study.patient:
        rays = cast_rays(anatomy, study.healthy, exposure, raster)
    attenuation = _attenuation(rays, rays.density, study.healthy, params.size_px)
    return tone_window(develop(attenuation, exposure), attenuation)


def _resize(image: Float[Tensor, "1 1 row col"], size_px: int, mode: str) -> Float[Tensor, "1 1 size size"]:
    if image.shape[-2:] == (size_px, size_px):
        return image
    return F.interpolate(image, size=(size_px, size_px), mode=mode, align_corners=False)
