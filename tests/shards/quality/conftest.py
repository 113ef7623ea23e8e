"""Small radiographs of real anatomy: what the bounds of the checks must tell apart."""

import dataclasses

import numpy as np
import pytest
from filelock import FileLock

from shards.phantom.anatomy import Anatomy, load_anatomy
from shards.phantom.patients import Exposure
from shards.phantom.radiograph import take_radiograph
from shards.phantom.study import draw_study
from tests.shards.phantom.settings import phantom_params

NUM_CHESTS, NUM_LATERALS = 30, 2
RASTER = {"size_px": 160, "num_ray_rows": 80, "num_ray_cols": 40, "num_depth_planes": 16}


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    return load_anatomy()


@pytest.fixture(scope="session")
def chests(
    anatomy: Anatomy, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> list[np.ndarray]:
    """One frontal image of each of 30 patients; the processes of one run draw them once."""
    is_alone = not hasattr(request.config, "workerinput")
    folder = tmp_path_factory.getbasetemp() if is_alone else tmp_path_factory.getbasetemp().parent
    path = folder / "chests.npy"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            np.save(path, [_radiograph(anatomy, number) for number in range(NUM_CHESTS)])
        return list(np.load(path))


@pytest.fixture(scope="session")
def laterals(anatomy: Anatomy) -> list[np.ndarray]:
    """One image from the side of each of two other patients."""
    return [_radiograph(anatomy, NUM_CHESTS + number, yaw_deg=90.0) for number in range(NUM_LATERALS)]


def _radiograph(anatomy: Anatomy, number: int, yaw_deg: float = 0.0) -> np.ndarray:
    settings = phantom_params(findings={"fraction": 0.0}, images_per_patient=1, **RASTER)
    study = draw_study(settings, anatomy, number)
    exposure: Exposure = study.exposures[0]
    turned = dataclasses.replace(exposure, rotation_deg=exposure.rotation_deg + np.array([0.0, 0.0, yaw_deg]))
    return np.asarray(take_radiograph(anatomy, study, turned, settings).image)
