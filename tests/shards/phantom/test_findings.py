import dataclasses

import numpy as np
import pytest

from shards.core.errors import ConfigError
from shards.phantom import study as study_module
from shards.phantom.anatomy import Anatomy
from shards.phantom.findings import KINDS, Effusion, Kind, Nodule, draw_lung_finding, lay
from shards.phantom.patients import draw_patient
from shards.phantom.projection import Mask, Raster, cast_rays, project, project_structures
from shards.phantom.radiograph import take_radiograph
from shards.phantom.study import MUST_BE_SEEN, Study, draw_study
from tests.shards.phantom.settings import SMALL, only, phantom_params

PARAMS = phantom_params(**SMALL, findings={"fraction": 1.0})
LUNG_KINDS = [kind for kind in KINDS if kind != "cardiomegaly"]


@pytest.fixture
def study(kind: Kind, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(study_module, "KINDS", only(kind))
    return draw_study(PARAMS, anatomy, 21)


def without_finding(study: Study) -> Study:
    return dataclasses.replace(study, patient=study.healthy, finding=None, kind=None)


def width(mask: Mask) -> int:
    cols = np.flatnonzero(mask.any(0))
    return int(cols[-1] - cols[0] + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_has_its_mask_and_changes_the_image_inside_of_it_but_not_its_tone(
    kind: Kind, study: Study, anatomy: Anatomy
) -> None:
    sick = take_radiograph(anatomy, study, study.exposures[0], PARAMS)
    healthy = take_radiograph(anatomy, without_finding(study), study.exposures[0], PARAMS)
    assert set(sick.masks) - set(healthy.masks) == {kind}
    mask = sick.masks[kind]
    assert mask.any()
    change = sick.image.astype(int) - healthy.image
    far = ~mask
    for axis in (0, 1):  # the blur's reach
        for shift in range(-5, 6):
            far &= ~np.roll(mask, shift, axis)
    if kind == "cardiomegaly":
        far[20:] = False  # the heart pushes its neighbours aside, but not the shoulders
    assert np.abs(change[far]).mean() < 2.5
    assert np.abs(change[mask]).mean() > 4 * np.abs(change[far]).mean()
    if kind in ("nodule", "consolidation", "pleural_effusion"):
        assert change[mask].mean() > 5
    if kind == "pneumothorax":
        assert change[mask].mean() < -3


@pytest.mark.parametrize("kind", LUNG_KINDS)
def test_a_finding_lies_in_the_lung_it_is_labelled_with(kind: Kind, study: Study, anatomy: Anatomy) -> None:
    masks = take_radiograph(anatomy, study, study.exposures[0], PARAMS).masks
    lung = masks[f"lung_{study.side}"]
    assert (masks[kind] & lung).sum() >= 0.97 * masks[kind].sum()


@pytest.mark.parametrize("kind", LUNG_KINDS)
def test_all_images_of_a_study_show_the_same_finding_at_the_same_anatomy(
    kind: Kind, study: Study, anatomy: Anatomy
) -> None:
    assert study.finding is not None
    centers = []
    for turn_deg in (-4, 4):
        exposure = dataclasses.replace(study.exposures[0], rotation_deg=np.full(3, turn_deg))
        rays = cast_rays(anatomy, study.patient, exposure, Raster(64, 64, 64))
        filled = lay(study.finding, rays)[1]
        centers.append([float(rays.place_mm(axis)[filled].mean()) for axis in range(3)])
    assert np.ptp(centers, axis=0).max() < 5  # samples differ in density along the pose


@pytest.mark.parametrize("kind", MUST_BE_SEEN)
def test_half_of_a_nodule_or_consolidation_lies_in_the_lung_field_of_every_image(
    kind: Kind, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "KINDS", only(kind))
    for number in range(2):
        study = draw_study(PARAMS, anatomy, number)
        for exposure in study.exposures:
            masks = take_radiograph(anatomy, study, exposure, PARAMS).masks
            seen = (masks[kind] & masks[f"lungfield_{study.side}"]).sum() / masks[kind].sum()
            assert seen >= PARAMS.findings.min_visible - 0.1  # the rejection looks at a coarser raster


def test_a_share_that_no_finding_reaches_is_an_error_that_says_so(
    anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "KINDS", only("consolidation"))
    monkeypatch.setattr(study_module, "visible_share", lambda study, anatomy: 0.9)
    with pytest.raises(ConfigError, match=r"min_visible.*0\.95"):
        draw_study(phantom_params(**SMALL, findings={"fraction": 1.0, "min_visible": 0.95}), anatomy, 0)


def test_enlarged_hearts_have_a_cardiothoracic_ratio_above_normal_ones(anatomy: Anatomy) -> None:
    ratios: dict[str, list[float]] = {"normal": [], "enlarged": []}
    exposure_rng = np.random.default_rng(0)
    for number in range(6):
        rng = np.random.default_rng(number)
        patient = draw_patient(PARAMS.anatomy, rng)
        enlarged = dataclasses.replace(patient, heart=float(rng.uniform(*PARAMS.findings.cardiomegaly_heart)))
        exposure = study_module.draw_exposure(PARAMS.exposure.model_copy(update={"ap_fraction": 0.0}), exposure_rng)
        for name, person in (("normal", patient), ("enlarged", enlarged)):
            masks = project_structures(cast_rays(anatomy, person, exposure, Raster(48, 160, 40)))
            ratios[name].append(width(masks["heart"]) / width(masks["lung_left"] | masks["lung_right"]))
    assert np.mean(ratios["normal"]) == pytest.approx(0.50, abs=0.025)
    assert np.mean(ratios["enlarged"]) == pytest.approx(0.59, abs=0.03)
    assert (np.array(ratios["enlarged"]) > np.array(ratios["normal"]) + 0.02).all()


def test_lung_fields_end_at_the_diaphragm_where_lungs_go_on(anatomy: Anatomy) -> None:
    study = draw_study(phantom_params(**SMALL, findings={"fraction": 0.0}), anatomy, 0)
    masks = take_radiograph(anatomy, study, study.exposures[0], PARAMS).masks
    for side in ("left", "right"):
        field, lung = masks[f"lungfield_{side}"], masks[f"lung_{side}"]
        assert (field <= lung).all()
        assert not (field & masks["below_diaphragm"]).any()
        assert field.sum() < 0.95 * lung.sum()


def test_a_share_of_studies_has_findings_and_kinds_are_equally_frequent(
    anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "visible_share", lambda study, anatomy: 1.0)
    monkeypatch.setattr(study_module, "draw_lung_finding", lambda kind, anatomy, params, rng: Effusion("left", -200.0))
    studies = [draw_study(phantom_params(**SMALL), anatomy, number) for number in range(150)]
    kinds = [study.kind for study in studies if study.kind]
    assert 50 < len(kinds) < 100  # half, within four standard deviations
    assert all(4 <= kinds.count(kind) <= 30 for kind in KINDS)


def test_both_lungs_get_findings_and_sizes_stay_in_their_range(anatomy: Anatomy) -> None:
    rng = np.random.default_rng(0)
    nodules = [draw_lung_finding("nodule", anatomy, PARAMS.findings, rng) for _ in range(12)]
    assert {nodule.side for nodule in nodules} == {"left", "right"}
    low, high = PARAMS.findings.nodule_radius_mm
    for nodule in nodules:
        assert isinstance(nodule, Nodule)
        assert low <= nodule.radius_mm <= high
        assert (nodule.center_mm[0] > anatomy.landmarks_mm["carina"][0]) == (nodule.side == "left")


def test_projecting_no_samples_gives_an_empty_mask(anatomy: Anatomy) -> None:
    study = draw_study(phantom_params(**SMALL, findings={"fraction": 0.0}), anatomy, 0)
    rays = cast_rays(anatomy, study.patient, study.exposures[0], Raster(16, 8, 8))
    assert not project(rays.labels == 255).any()
