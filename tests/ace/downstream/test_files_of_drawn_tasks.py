"""The files of configs/tasks that ask where something is: names are those of the datasets."""

from ace.downstream.base import Task
from ace.downstream.params import TaskParams
from ace.downstream.registry import read_task
from shards.core.records import structure_of
from shards.phantom.labels import STRUCTURES as PHANTOM
from shards.sources.datasets import chestx_det, drishti_gs, drive, jsrt, montgomery, refuge, siim_acr
from tests.support.checkout import ROOT


def task(name: str) -> Task[TaskParams]:
    return read_task(name, ROOT)


def structures(name: str) -> tuple[str, ...]:
    found: tuple[str, ...] = task(name).params.structures  # type: ignore[attr-defined]
    return found


def test_structures_are_those_of_the_datasets() -> None:
    assert structures("jsrt") == jsrt.STRUCTURES
    assert structures("siim") == (siim_acr.FINDING,)
    assert structures("chest_det") == tuple(map(structure_of, chestx_det.FINDINGS))
    assert set(structures("montgomery")) < montgomery._masks("left", "right", None).keys()
    assert set(structures("drive")) < drive._MASKS.keys()
    assert set(structures("drishti_gs")) == drishti_gs._STRUCTURES.keys()
    assert set(structures("refuge")) == refuge._masks("file").keys()
    assert set(structures("phantom_masks")) < set(PHANTOM)


def test_left_and_right_are_not_exchanged_where_they_mean_something() -> None:
    for name in ("jsrt", "montgomery", "siim", "chest_det", "phantom_masks", "phantom_masks_few", "phantom_landmarks"):
        assert task(name).params.shown.mirror_probability == 0


def test_whole_images_are_shown_so_that_no_structure_is_cut_off() -> None:
    names = ("jsrt", "montgomery", "siim", "chest_det", "drive", "drishti_gs", "refuge", "refuge_fovea")
    assert {task(name).params.shown.crop_side for name in names} == {1.0}


def test_the_peak_learning_rate_is_that_of_the_paper() -> None:
    assert {name: round(task(name).params.training.lr, 8) for name in ("jsrt", "siim", "chest_det")} == {
        "jsrt": 1e-3,
        "siim": 1e-4,
        "chest_det": 1e-4,
    }
