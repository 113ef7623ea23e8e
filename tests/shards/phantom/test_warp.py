import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.phantom.anatomy import Anatomy
from shards.phantom.patients import Exposure, Patient, draw_exposure, draw_patient
from shards.phantom.projection import Raster, cast_rays, integrate, project
from shards.phantom.warp import FIELD_BOX_MM, FIELD_KNOTS, interpolation_matrix, locate, smooth_field, warp_grid
from tests.shards.phantom.settings import phantom_params
from tests.support.examples import examples

NUM_BALLS = 39
BALL_MM = 7.0
BLOB_SD_MM = 2.2
FIRST_BALL = 200
SEEDS = st.integers(0, 2**20)


def draw(seed: int) -> tuple[Patient, Exposure]:
    params, rng = phantom_params(), np.random.default_rng(seed)
    patient = draw_patient(params.anatomy, rng)
    if seed % 2:
        patient = dataclasses.replace(patient, heart=params.findings.cardiomegaly_heart[1])
    return patient, draw_exposure(params.exposure, rng)


def interpolate(grid: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The grid at (row, col, depth) in 0..1, by three products of interpolation matrices."""
    rows, cols, depths = (interpolation_matrix(places[:, axis], num) for axis, num in enumerate(grid.shape[:3]))
    return np.einsum("ni,nj,nk,ijkc->nc", rows, cols, depths, grid)


@given(seed=SEEDS)
@examples(0.25)
def test_nobody_is_folded(seed: int) -> None:
    grid = warp_grid(*draw(seed))
    steps = [np.diff(grid, axis=axis)[:35, :35, :17] for axis in range(3)]
    volumes = np.linalg.det(np.stack(steps, axis=-1))
    assert (volumes / np.median(volumes)).min() > 0.05


@given(seed=SEEDS)
@examples(0.15)
def test_locating_inverts_the_map_that_images_are_sampled_with(seed: int) -> None:
    grid = warp_grid(*draw(seed))
    places = np.random.default_rng(seed).uniform(0.02, 0.98, (60, 3))
    assert np.abs(locate(grid, interpolate(grid, places)) - places).max() < 1e-7


def test_the_random_field_has_the_spread_of_its_control_values() -> None:
    rng = np.random.default_rng(0)
    inner = rng.uniform(FIELD_BOX_MM[0] + 70, FIELD_BOX_MM[1] - 70, (400, 3))[:, [0, 2, 1]]
    fields = np.stack([smooth_field(rng.standard_normal((*FIELD_KNOTS, 3)), inner) for _ in range(60)])
    assert fields.std() == pytest.approx(1, abs=0.08)


def with_balls(anatomy: Anatomy, names: list[str]) -> Anatomy:
    """The scan with nothing in it but a ball about each of some landmarks, labelled one by one.

    Density is a Gaussian about the landmark: voxels sample it without moving its centre, as they would an edge.
    """
    labels, soft = np.zeros_like(anatomy.labels), np.zeros(anatomy.labels.shape, dtype=np.float32)
    for number, name in enumerate(names):
        center = (anatomy.landmarks_mm[name] - anatomy.origin_mm) / anatomy.spacing_mm
        low = np.floor(center - BALL_MM / anatomy.spacing_mm).astype(int)
        high = np.ceil(center + BALL_MM / anatomy.spacing_mm).astype(int) + 1
        axes = [np.arange(*ends) for ends in zip(low, high, strict=True)]
        left, front, up = (
            (axis - middle) * size for axis, middle, size in zip(axes, center, anatomy.spacing_mm, strict=True)
        )
        squared_mm = up[:, None, None] ** 2 + front[:, None] ** 2 + left**2
        region = np.s_[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        labels[region][squared_mm < BALL_MM**2] = FIRST_BALL + number
        soft[region] += np.exp(-squared_mm / (2 * BLOB_SD_MM**2))
    empty = torch.zeros(soft.shape)
    return dataclasses.replace(anatomy, labels=labels, soft=torch.from_numpy(soft), bone=empty, lung=empty)


@pytest.mark.slow
def test_landmarks_masks_and_attenuation_agree_on_planted_balls(anatomy: Anatomy) -> None:
    params = phantom_params()
    rng = np.random.default_rng(3)
    patient, exposure = draw_patient(params.anatomy, rng), draw_exposure(params.exposure, rng)
    size = 512
    raster = Raster(size, size // 2, 80)
    everywhere = locate(warp_grid(patient, exposure), np.array(list(anatomy.landmarks_mm.values())))
    inside = ((everywhere > 0.06) & (everywhere < 0.94)).all(1)
    apart: list[str] = []
    for name, is_inside in zip(anatomy.landmarks_mm, inside, strict=True):
        place = anatomy.landmarks_mm[name]
        if is_inside and all(np.linalg.norm(place - anatomy.landmarks_mm[other]) > 2.5 * BALL_MM for other in apart):
            apart.append(name)
    chosen = apart[:NUM_BALLS]
    assert len(chosen) == NUM_BALLS

    rays = cast_rays(with_balls(anatomy, chosen), patient, exposure, raster)
    expected = locate(rays.grid, np.array([anatomy.landmarks_mm[name] for name in chosen]))[:, :2] * size
    mask_errors, attenuation_errors = [], []
    for number, (row, col) in enumerate(expected):
        samples = rays.labels == FIRST_BALL + number
        for errors, weight in (
            (mask_errors, project(samples).astype(float)),
            (attenuation_errors, integrate(rays, rays.density * samples).numpy()),
        ):
            rows, cols = np.mgrid[: raster.num_rows, : raster.num_cols]
            center = [(axis + 0.5).ravel() @ weight.ravel() / weight.sum() for axis in (rows, cols)]
            errors.append(np.hypot(center[0] - row, 2 * center[1] - col))
    assert np.sqrt(np.mean(np.square(attenuation_errors))) < 0.1
    assert max(attenuation_errors) < 0.3
    # A mask is made of whole voxels, whole rays and planes 4 mm apart.
    assert np.sqrt(np.mean(np.square(mask_errors))) < 0.4
    assert max(mask_errors) < 1


def test_rays_pass_through_the_landmarks_where_they_are_located(anatomy: Anatomy) -> None:
    raster = Raster(256, 128, 80)
    for seed in range(3):
        rays = cast_rays(anatomy, *draw(seed), raster)
        targets = np.array(list(anatomy.landmarks_mm.values()))
        places = locate(rays.grid, targets)
        # Samples lie at the centres of their cells: depth, row, col in units of samples.
        position = places[:, [2, 0, 1]] * (raster.num_depths, raster.num_rows, raster.num_cols) - 0.5
        inside = ((position > 0) & (position < np.array(rays.labels.shape) - 1)).all(1)
        assert inside.sum() > 80
        cell, share = np.divmod(position[inside], 1)
        found = np.zeros((int(inside.sum()), 3))
        sampled = torch.stack([rays.place_mm(axis) for axis in range(3)], dim=-1).numpy()
        for corner in np.ndindex(2, 2, 2):
            depth, row, col = (cell + corner).astype(int).T
            found += np.where(corner, share, 1 - share).prod(1)[:, None] * sampled[depth, row, col]
        error_px = 512 / 334 * np.linalg.norm(found - targets[inside], axis=1)
        assert np.sqrt(np.mean(error_px**2)) < 0.1
        assert error_px.max() < 0.5
