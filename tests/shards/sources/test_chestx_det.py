import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.core.records import Box, MaskPolygons
from shards.sources.check import check_source
from shards.sources.datasets.chestx_det import FINDINGS, SOURCE, has_area, read_mapping
from shards.sources.registry import open_source
from tests.shards.sources.trees import by_id, check_one_folder_more, drawn, problem, write_pixels

SQUARE = [[2, 1], [8, 1], [8, 5], [8, 5], [2, 5]]
TRIANGLE = [[0, 6], [4, 6], [0, 10]]


def item(name: str, *instances: tuple[str, list[Any], list[Any]]) -> dict[str, Any]:
    syms, boxes, polygons = ([instance[part] for instance in instances] for part in range(3))
    return {"file_name": name, "syms": syms, "boxes": boxes, "polygons": polygons}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two instances of one finding, a degenerate ring, no finding, a listed image and a file without the other."""
    train = [
        item(
            "36199.png",
            ("Diffuse Nodule", [2, 1, 8, 5], SQUARE),
            ("Effusion", [0, 6, 4, 10], TRIANGLE),
            ("Effusion", [2, 1, 8, 5], SQUARE),
            ("Mass", [3, 3, 3, 9], [[1, 1], [1, 1], [3, 3], [5, 5]]),
        ),
        item("40003.png"),
        item("99999.png"),
    ]
    (tmp_path / "ChestX_Det_train.json").write_text(json.dumps(train))
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps([item("57.png", ("Fracture", [1, 2, 3, 4], SQUARE))]))
    for name in ("train_data/36199.png", "train_data/40003.png", "train_data/7.png", "test_data/57.png"):
        write_pixels(tmp_path / name, size=(12, 12))
    return tmp_path


def test_chestx_det_passes_the_battery(root: Path) -> None:
    check_source(open_source("chestx-det"), root)
    (root / "mapping.json").write_text(json.dumps({"36199.png": "00000007_000.png", "57.png": "00000007_001.png"}))
    check_source(SOURCE, root)


def test_records_hold_what_the_lists_say(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert {name: record.split for name, record in records.items()} == {
        "36199": "train",
        "40003": "train",
        "57": "test",
    }
    sick = records["36199"]
    assert sick.labels == {name: int(name in ("Diffuse Nodule", "Effusion", "Mass")) for name in FINDINGS}
    # (x, y) became (row, col); the repeated corner is left out, and so is the box without width.
    assert sick.boxes == (
        Box(label="Diffuse Nodule", row0=1, col0=2, row1=5, col1=8),
        Box(label="Effusion", row0=6, col0=0, row1=10, col1=4),
        Box(label="Effusion", row0=1, col0=2, row1=5, col1=8),
    )
    square = ((1.0, 2.0), (1.0, 8.0), (5.0, 8.0), (5.0, 2.0))
    assert sick.masks["Diffuse_Nodule"] == MaskPolygons((square,))
    assert sick.masks["Effusion"] == MaskPolygons((((6.0, 0.0), (6.0, 4.0), (10.0, 0.0)), square))
    assert set(records["40003"].labels.values()) == {0}
    assert {record.size for record in records.values()} == {(1024, 1024)}
    assert sick.patient == "chestx-det/36199"


def test_entries_as_published_are_read(tmp_path: Path) -> None:
    """Entries of Deepwise-AILab/ChestX-Det-Dataset at d82eb07: none, one and two findings; rings end as they begin."""
    effusion = [[871, 886], [889, 930], [901, 878], [889, 884], [868, 880], [871, 886]]
    nodule = [[814, 734], [789, 719], [779, 743], [785, 757], [802, 755], [810, 740], [814, 734]]
    thickening = [[896, 798], [892, 848], [864, 831], [877, 874], [910, 904], [896, 798]]
    test = [
        item("36199.png"),
        item("39468.png", ("Effusion", [868, 878, 901, 930], effusion)),
        item(
            "41850.png",
            ("Nodule", [779, 719, 814, 757], nodule),
            ("Pleural Thickening", [864, 798, 910, 904], thickening),
        ),
    ]
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps(test))
    for entry in test:
        write_pixels(tmp_path / "test_data" / entry["file_name"])
    listing = SOURCE.read(tmp_path)
    records = by_id(listing)
    assert {name: {label for label, value in record.labels.items() if value} for name, record in records.items()} == {
        "36199": set(),
        "39468": {"Effusion"},
        "41850": {"Nodule", "Pleural Thickening"},
    }
    assert records["39468"].boxes == (Box(label="Effusion", row0=878, col0=868, row1=930, col1=901),)
    # The closing point changes nothing of what is drawn.
    closed = records["39468"].masks["Effusion"]
    opened = MaskPolygons((tuple((float(y), float(x)) for x, y in effusion[:-1]),))
    found = drawn(closed, tmp_path, (1024, 1024))
    np.testing.assert_array_equal(found, drawn(opened, tmp_path, (1024, 1024)))
    rows, cols = np.nonzero(found)
    assert (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1) == pytest.approx((878, 868, 930, 901), abs=1)
    assert not any("dropped" in warning for warning in listing.warnings)


def test_the_findings_are_in_the_order_of_the_authors_page() -> None:
    page = "Atelectasis, Calcification, Cardiomegaly, Consolidation, Diffuse Nodule, Effusion, Emphysema, Fibrosis, "
    page += "Fracture, Mass, Nodule, Pleural Thickening, Pneumothorax"
    assert ", ".join(FINDINGS) == page


def test_a_finding_is_absent_or_drawn_or_unknown(root: Path) -> None:
    sick, well = (by_id(SOURCE.read(root))[name] for name in ("36199", "40003"))
    assert set(well.masks.values()) == {MaskPolygons(())}
    assert len(well.masks) == len(FINDINGS)
    assert sick.masks["Pleural_Thickening"] == MaskPolygons(())
    assert "Mass" not in sick.masks, "its only ring has no area: present, but nobody knows where"


def test_instances_are_drawn_and_ored(root: Path) -> None:
    mask = by_id(SOURCE.read(root))["36199"].masks["Effusion"]
    found = drawn(mask, root, (12, 12))
    expected = np.zeros((12, 12), bool)
    expected[1:5, 2:8] = True
    for row in range(4):
        # The hypotenuse passes through centres, which lie on its right-hand side.
        expected[6 + row, : 3 - row] = True
    np.testing.assert_array_equal(found, expected)


def test_one_folder_more_around_it_all_does_not_matter(root: Path) -> None:
    check_one_folder_more(SOURCE, root)


def test_what_is_missing_is_counted(root: Path) -> None:
    warnings = "\n".join(SOURCE.read(root).warnings)
    assert "3 images found, 3,578 published" in warnings
    assert "1 images of the lists are not there" in warnings
    assert "1 images in no list were left out" in warnings
    assert "2 polygons or boxes without an area were dropped" in warnings


def test_one_part_may_be_there_alone(root: Path) -> None:
    (root / "ChestX_Det_train.json").unlink()
    assert list(by_id(SOURCE.read(root))) == ["57"]


@pytest.mark.parametrize(
    "content",
    [
        {"36199.png": "00000007_000.png", "40003.png": "00000007_001.png", "57.png": "00000008_000.png"},
        {"00000007_000.png": "36199.png", "00000007_001.png": "40003.png", "00000008_000.png": "57.png"},
        [["36199", "00000007_000.png"], ["40003", "00000007_001.png"], ["57", "00000008_000.png"]],
    ],
)
def test_the_mapping_gives_nih_patients_in_whatever_form(content: object, root: Path) -> None:
    (root / "mapping.json").write_text(json.dumps(content))
    listing = SOURCE.read(root)
    assert (listing.patient_grouping, listing.shares_images_with) == ("patient", ())
    assert {name: record.patient[-8:] for name, record in by_id(listing).items()} == {
        "36199": "00000007",
        "40003": "00000007",
        "57": "00000008",
    }


def test_a_mapping_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mapping.json"
    for text in ("{", "{}", "3", '{"a": "b"}', '{"1": "00000001_000.png", "2": "b"}', '["abc"]'):
        path.write_text(text)
        assert "expected the authors' mapping" in problem(lambda: read_mapping(path)), text
    path.write_text('[["1", "00000001_000.png"], ["1.png", "00000001_001.png"]]')
    assert "is mapped to two images" in problem(lambda: read_mapping(path))


def test_a_ring_has_an_area_unless_its_points_are_on_a_line() -> None:
    assert has_area(((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)))
    # A figure of eight encloses as much left as right.
    assert has_area(((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)))
    assert not has_area(())
    assert not has_area(((1.0, 1.0), (2.0, 2.0), (1.0, 1.0), (2.0, 2.0)))
    assert not has_area(((0.0, 0.0), (1.0, 2.0), (2.0, 4.0)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "no list with its images"),
        ([{"file_name": "1.png", "syms": []}], "expected a list of objects"),
        ([{"file_name": 1, "syms": [], "boxes": [], "polygons": []}], "expected a list of objects"),
        ([item("1.png", ("Mass", [1, 2, 3], SQUARE))], "expected a list of objects"),
        ([item("1.png", ("Mass", [1, 2, 3, 4], [[1, "NaN"]]))], "expected a list of objects"),
        ([{"file_name": "1.png", "syms": ["Mass"], "boxes": [], "polygons": []}], "expected a list of objects"),
        ([item("1.png", ("mass", [1, 2, 3, 4], SQUARE))], "'mass' is none of ChestX-Det's findings"),
        ([item("../1.png")], "leaves the folder"),
        ([item("1.png"), item("1.png")], "listed twice"),
    ],
)
def test_a_list_of_another_form_is_refused(content: object, expected: str, tmp_path: Path) -> None:
    (tmp_path / "ChestX_Det_train.json").write_text(json.dumps(content))
    write_pixels(tmp_path / "train_data/1.png")
    assert expected in problem(lambda: SOURCE.read(tmp_path))


def test_another_folder_is_told_from_the_dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "train_data/<number>.png" in problem(lambda: SOURCE.read(tmp_path_factory.mktemp("empty")))
    (root / "ChestX_Det_test.json").write_text(json.dumps([item("36199.png")]))
    write_pixels(root / "test_data/36199.png")
    assert "the two lists name the same image" in problem(lambda: SOURCE.read(root))
