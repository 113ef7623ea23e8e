"""One study: a virtual patient, its finding or none, and its exposures; drawn from (seed, patient number) alone."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shards.core.errors import ConfigError
from shards.phantom.anatomy import Anatomy
from shards.phantom.findings import KINDS, Kind, LungFinding, draw_lung_finding, lay
from shards.phantom.params import PhantomParams
from shards.phantom.patients import Exposure, Patient, draw_exposure, draw_patient
from shards.phantom.projection import Raster, cast_rays, project, project_structures

PATIENT_STREAM, FINDING_STREAM, EXPOSURE_STREAM = range(3)
MUST_BE_SEEN: tuple[Kind, ...] = ("nodule", "consolidation")
REJECTION_RASTER = Raster(72, 72, 48)
NUM_FINDING_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Study:
    """A patient's images: anatomy, finding and exposures."""

    number: int
    patient: Patient
    healthy: Patient
    """The patient without the finding: differs only where the finding is a shape (the heart)."""
    kind: Kind | None
    finding: LungFinding | None
    exposures: tuple[Exposure, ...]

    @property
    def patient_id(self) -> str:
        """Id of the patient, as `p0007`."""
        return patient_id(self.number)

    @property
    def study_id(self) -> str:
        """Id of the study, as `p0007-s0`: every patient has one study."""
        return f"{self.patient_id}-s0"

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of the images, as `p0007-i1`, counted from 0."""
        return tuple(image_id(self.number, index) for index in range(len(self.exposures)))

    @property
    def side(self) -> str:
        """`left`, `right`, or empty where the finding has no side."""
        return self.finding.side if self.finding else ""


def patient_id(number: int) -> str:
    """Name of a virtual patient."""
    return f"p{number:04d}"


def image_id(number: int, index: int) -> str:
    """Name of a patient's image, counted from 0."""
    return f"{patient_id(number)}-i{index}"


def count_images(params: PhantomParams, number: int) -> int:
    """Count the images of patient `number`."""
    return len(_draw_exposures(params, number))


def draw_study(params: PhantomParams, anatomy: Anatomy, number: int) -> Study:
    """Draw the study of patient `number`.

    Raises:
        ConfigError: no finding of the drawn kind can be seen as `findings.min_visible` asks.
    """
    healthy = draw_patient(params.anatomy, np.random.default_rng([params.seed, number, PATIENT_STREAM]))
    exposures = _draw_exposures(params, number)
    rng = np.random.default_rng([params.seed, number, FINDING_STREAM])
    has_finding = rng.random() < params.findings.fraction
    kind = KINDS[rng.integers(len(KINDS))]
    if not has_finding:
        return Study(number=number, patient=healthy, healthy=healthy, kind=None, finding=None, exposures=exposures)
    if kind == "cardiomegaly":
        enlarged = dataclasses.replace(healthy, heart=float(rng.uniform(*params.findings.cardiomegaly_heart)))
        return Study(number=number, patient=enlarged, healthy=healthy, kind=kind, finding=None, exposures=exposures)
    for _ in range(NUM_FINDING_DRAWS):
        finding = draw_lung_finding(kind, anatomy, params.findings, rng)
        study = Study(number=number, patient=healthy, healthy=healthy, kind=kind, finding=finding, exposures=exposures)
        if kind not in MUST_BE_SEEN or visible_share(study, anatomy) >= params.findings.min_visible:
            return study
    raise ConfigError(
        f"phantom.findings.min_visible: no {kind} of patient {number} lay in the lung field with a share of "
        f"{params.findings.min_visible} in {NUM_FINDING_DRAWS} draws; ask for a smaller share or a smaller finding"
    )


def visible_share(study: Study, anatomy: Anatomy, raster: Raster = REJECTION_RASTER) -> float:
    """Share of the finding's projection that lies in the lung field, in the image where it is smallest."""
    assert study.finding is not None
    shares = []
    for exposure in study.exposures:
        rays = cast_rays(anatomy, study.patient, exposure, raster)
        mask = project(lay(study.finding, rays)[1])
        field = project_structures(rays)[f"lungfield_{study.finding.side}"]
        shares.append((mask & field).sum() / max(mask.sum(), 1))
    return float(min(shares))


def _draw_exposures(params: PhantomParams, number: int) -> tuple[Exposure, ...]:
    rng = np.random.default_rng([params.seed, number, EXPOSURE_STREAM])
    num_images = rng.integers(1, params.images_per_patient + 1)
    return tuple(draw_exposure(params.exposure, rng) for _ in range(num_images))
