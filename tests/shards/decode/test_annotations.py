"""What is drawn on an image stays on its canvas, or is counted as lost; the image stays whatever happens."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.checking.stats import format_statistics
from shards.checking.verify import verify_set
from shards.core.canvas import Placement
from shards.core.errors import SourceError
from shards.core.records import Box, File, Mask, MaskFiles, MaskPolygons, MaskRuns, Record
from shards.decode.annotations import (
    CUT_OFF,
    OTHER_SIZE,
    OUTSIDE,
    PARTLY_CUT_OFF,
    Annotations,
    Loss,
    misfit_of,
    place_annotations,
)
from shards.decode.masks import MASK_SIZE
from shards.delivery.survey import survey_images
from shards.format.index import LostAnnotations
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.base import Listing
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.support.datasets import NO_CHECKS, Here, delivered, grid_params, shard_params, smooth_image

TRIMMED = Placement(canvas_px=48, source_height=100, source_width=100, box=(20, 10, 80, 70))
"""Of an image of 100 × 100 pixels, the rows 20 to 80 and the columns 10 to 70 on a canvas of 48."""
WHOLE = Placement(canvas_px=48, source_height=100, source_width=100, box=(0, 0, 100, 100))


def place(placement: Placement, files: dict[str, np.ndarray] | None = None, **parts: Any) -> Annotations:
    """Place annotations; masks of `files` are read from memory by the names of their structures."""

    def read(file: File) -> bytes:
        data = io.BytesIO()
        Image.fromarray((files or {})[file.path]).save(data, "PNG")
        return data.getvalue()

    masks = {name: MaskFiles(files=(File(name),)) for name in files or {}} | parts.pop("masks", {})
    return place_annotations(
        Record(source_id="1", image=File("1.png"), patient="1", masks=masks, **parts), placement, read, 1e6
    )


def drawn(*corners: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    for row0, col0, row1, col1 in corners:
        mask[row0:row1, col0:col1] = True
    return mask


def test_what_lies_inside_the_placed_part_is_placed_and_nothing_is_lost() -> None:
    found = place(
        TRIMMED,
        {"lesion": drawn((30, 20, 40, 40))},
        boxes=(Box(label="Mass", row0=20, col0=10, row1=50, col1=40),),
        landmarks={"fovea": (80.0, 70.0)},
        size=(100, 100),
    )
    assert found.losses == []
    assert found.boxes == [Box(label="Mass", row0=0, col0=0, row1=pytest.approx(24), col1=pytest.approx(24))]
    assert found.landmarks == {"fovea": pytest.approx((48, 48))}
    assert found.areas == {"lesion": 200 / 100**2}
    expected = np.zeros((48, 48), bool)
    expected[8:16, 8:24] = True
    assert np.array_equal(found.masks["lesion"], expected)


def test_a_mask_in_the_part_that_is_cut_off_is_unknown_rather_than_absent_and_counted() -> None:
    found = place(
        TRIMMED,
        {
            "gone": drawn((0, 0, 10, 10), (90, 90, 95, 92)),
            "half": drawn((30, 60, 40, 90), (0, 50, 5, 55), (50, 20, 60, 30)),
            "empty": drawn(),
        },
        masks={"absent": MaskFiles(files=())},
    )
    assert sorted(found.masks) == ["absent", "empty", "half"]
    assert found.areas["gone"] == 110 / 100**2
    assert found.losses == [
        Loss(name="mask gone", reason=CUT_OFF, num_pixels=110, num_parts=2),
        Loss(name="mask half", reason=PARTLY_CUT_OFF, num_pixels=225, num_parts=1),
    ]


def test_boxes_and_landmarks_in_the_part_that_is_cut_off_are_counted_and_others_end_at_its_edge() -> None:
    boxes = (
        Box(label="Mass", row0=0, col0=0, row1=20, col1=100),
        Box(label="Nodule", row0=10, col0=5, row1=50, col1=40),
        Box(label="Nodule", row0=30, col0=30, row1=40, col1=40),
    )
    found = place(TRIMMED, boxes=boxes, landmarks={"fovea": (50.0, 75.0), "disc": (50.0, 40.0)})
    assert found.losses == [
        Loss(name="box Mass", reason=CUT_OFF),
        Loss(name="box Nodule", reason=PARTLY_CUT_OFF),
        Loss(name="landmark fovea", reason=CUT_OFF),
    ]
    assert found.boxes[0] == Box(label="Nodule", row0=0, col0=0, row1=pytest.approx(24), col1=pytest.approx(24))
    assert len(found.boxes) == 2
    assert list(found.landmarks) == ["disc"]


def test_a_box_wholly_beyond_the_border_is_outside_and_not_cut_off() -> None:
    assert place(WHOLE, boxes=(Box(label="Mass", row0=50, col0=100.2, row1=60, col1=100.8),)).losses == [
        Loss(name="box Mass", reason=OUTSIDE)
    ]


def test_a_box_drawn_a_little_over_the_border_ends_there() -> None:
    found = place(
        WHOLE, boxes=(Box(label="Mass", row0=50, col0=50, row1=100.9, col1=99),), landmarks={"fovea": (-0.5, 50.0)}
    )
    assert found.losses == []
    assert found.boxes == [Box(label="Mass", row0=24, col0=24, row1=48, col1=pytest.approx(47.52))]
    assert found.landmarks == {"fovea": (0, 24)}


SQUARE = ((10.0, 10.0), (10.0, 20.0), (20.0, 20.0), (20.0, 10.0))


@pytest.mark.parametrize(
    "parts",
    [
        {"boxes": (Box(label="Mass", row0=10, col0=10, row1=20, col1=20),)},
        {"landmarks": {"fovea": (10.0, 10.0)}},
        {"masks": {"Mass": MaskPolygons((SQUARE,))}},
    ],
)
def test_coordinates_that_were_given_for_another_size_are_not_used(parts: dict[str, Any]) -> None:
    record = Record(source_id="1", image=File("1.png"), patient="1", **parts)
    assert misfit_of(record, (100, 100)) is None
    assert misfit_of(replace(record, size=(100, 100)), (100, 100)) is None
    assert misfit_of(replace(record, size=(1024, 1024)), (100, 100)) == OTHER_SIZE
    assert misfit_of(record, (8, 100)) == misfit_of(record, (100, 8)) == OUTSIDE
    found = place(WHOLE, size=(1024, 1024), **parts)
    assert [loss.reason for loss in found.losses] == [OTHER_SIZE]
    assert (found.boxes, found.landmarks, found.masks) == ([], {}, {})


def test_masks_in_files_are_no_coordinates_and_stay() -> None:
    found = place(WHOLE, {"lesion": drawn((0, 0, 50, 50))}, masks={"Mass": MaskPolygons(())}, size=(1024, 1024))
    assert (list(found.masks), found.losses) == (["Mass", "lesion"], [])


def test_one_coordinate_outside_shows_that_all_are_of_another_image() -> None:
    boxes = (
        Box(label="Mass", row0=10, col0=10, row1=20, col1=20),
        Box(label="Mass", row0=10, col0=10, row1=300, col1=20),
    )
    found = place(WHOLE, boxes=boxes)
    assert found.boxes == []
    assert found.losses == 2 * [Loss(name="box Mass", reason=OUTSIDE)]


def build(records: list[Record], root: Path, **grid: Any) -> ShardReader:
    listing = Listing(records=tuple(records), patient_grouping="image")
    source = delivered(listing, root, root.parent / "manifests" / f"{root.name}.jsonl")
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0}, quality=NO_CHECKS)
    out = root.parent / "out"
    build_shards("a-b000", source, grid_params(**grid), params, out, execution=Here())
    return ShardReader(ShardIndex.open(out))


def write_image(root: Path, name: str, size: tuple[int, int] = (60, 60)) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_image(*size, 1)).save(root / name)
    return root / name


def save_mask(path: Path, mask: np.ndarray) -> File:
    Image.fromarray(mask).save(path)
    return File(path.name)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: save_mask(path, np.zeros((30, 30), bool)), MASK_SIZE),
        (lambda path: path.write_bytes(b""), "a mask: an empty file"),
        (damage, "a mask: truncated or damaged image data"),
    ],
)
def test_a_mask_that_cannot_be_used_is_left_out_and_counted_and_its_image_stays(
    spoil: Callable[[Path], None], reason: str, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "own"
    write_image(root, "a.png")
    file, other = (save_mask(root / name, smooth_image(60, 60, 2) > 128) for name in ("mask.png", "other.png"))
    spoil(root / file.path)
    masks: dict[str, Mask] = {"bad": MaskFiles(files=(file,)), "good": MaskFiles(files=(other,))}
    reader = build([Record(source_id="a", image=File("a.png"), patient="a", masks=masks)], root)
    sample = reader.read(0)
    assert list(sample.masks()) == ["good"]
    assert sample.meta["lost"] == [Loss(name="mask bad", reason=reason).to_json()]
    counts = reader.index.description.counts
    assert counts.lost_annotations == {f"mask bad: {reason}": LostAnnotations(images=1, parts=0, pixels=0)}
    assert reader.index.description.quarantined.count == 0
    said = f"warning: mask bad: {reason}, in 1 images"
    assert said in capsys.readouterr().err
    assert said in format_statistics(reader.index)
    assert verify_set(reader.index.root) == []


def test_what_the_cut_takes_away_is_added_up_over_the_images(tmp_path: Path, id_key: str) -> None:
    root = tmp_path / "own"
    records = []
    for number in range(3):
        image = np.pad(np.maximum(smooth_image(40, 40, number), 30), 10)
        root.mkdir(exist_ok=True)
        Image.fromarray(image).save(root / f"{number}.png")
        runs = MaskRuns((((0, 5), (60 * 20 + 10, 3)),), 60, 60)  # five pixels in the edge, three in the image
        box = Box(label="Mass", row0=0, col0=0, row1=5, col1=5)
        masks: dict[str, Mask] = {"lesion": runs} if number else {}
        records.append(
            Record(
                source_id=str(number), image=File(f"{number}.png"), patient=str(number), masks=masks, boxes=(box, box)
            )
        )
    reader = build(records, root, trim_level=25)
    assert reader.index.description.counts.lost_annotations == {
        f"box Mass: {CUT_OFF}": LostAnnotations(images=3, parts=0, pixels=0),
        f"mask lesion: {PARTLY_CUT_OFF}": LostAnnotations(images=2, parts=2, pixels=10),
    }
    assert {json.dumps(reader.read(row).meta["boxes"]) for row in range(3)} == {"[]"}


def test_a_set_of_which_nothing_is_lost_says_nothing_of_it(tmp_path: Path, id_key: str) -> None:
    root = tmp_path / "own"
    write_image(root, "a.png")
    reader = build(
        [
            Record(
                source_id="a",
                image=File("a.png"),
                patient="a",
                boxes=(Box(label="Mass", row0=1, col0=1, row1=9, col1=9),),
                masks={"m": MaskFiles(files=())},
            )
        ],
        root,
    )
    assert "lost" not in reader.read(0).meta
    assert not {"lost_annotations", "suspect_masks"} & set(reader.index.description.counts.to_json())


def test_masks_that_are_empty_or_the_whole_image_everywhere_are_a_warning(
    tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "own"
    records = []
    some = np.zeros((60, 60), bool)
    some[20:40, 20:40] = True
    for number in range(2):
        write_image(root, f"{number}.png")
        drawn_masks = {
            "all": ~np.zeros_like(some),
            "none": np.zeros_like(some),
            "some": some,
            "now_and_then": some & bool(number),
        }
        masks: dict[str, Mask] = {
            name: MaskFiles(files=(save_mask(root / f"{name}{number}.png", mask),))
            for name, mask in drawn_masks.items()
        }
        records.append(
            Record(
                source_id=str(number),
                image=File(f"{number}.png"),
                patient=str(number),
                masks={**masks, "absent": MaskFiles(files=())},
            )
        )
    reader = build(records, root)
    assert reader.index.description.counts.suspect_masks == {
        "all": "nearly the whole image in all 2 images",
        "none": "empty in all 2 images",
    }
    assert "warning: mask all: nearly the whole image in all 2 images; look at" in capsys.readouterr().err


def test_a_mask_is_compared_with_the_label_of_its_name_where_that_has_spaces(tmp_path: Path, id_key: str) -> None:
    root = tmp_path / "own"
    write_image(root, "a.png")
    labels = {"Pleural Thickening": 1, "Diffuse Nodule": 0, "Mass": 1}
    polygon = MaskPolygons((SQUARE,))
    masks: dict[str, Mask] = {"Pleural_Thickening": MaskPolygons(()), "Diffuse_Nodule": polygon, "Mass": polygon}
    reader = build([Record(source_id="a", image=File("a.png"), patient="a", labels=labels, masks=masks)], root)
    (row,) = pq.read_table(reader.index.root / "quality.parquet").to_pylist()
    assert row["contradictions"] == ["Diffuse_Nodule", "Pleural_Thickening"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, [0.1, 0.2]),
        ({"spacing_mm": (1.0, 2.0)}, [1.0, 2.0]),
        ({"spacing_mm": "unusable"}, None),
        ({"spacing_mm": (1.0, 2.0), "size": (60, 60)}, [1.0, 2.0]),
        ({"spacing_mm": (1.0, 2.0), "size": (1024, 1024)}, None),
        ({"size": (1024, 1024)}, None),
    ],
)
def test_a_spacing_that_must_not_be_used_does_not_come_back_from_the_header(
    record: dict[str, Any], expected: list[float] | None, tmp_path: Path, id_key: str
) -> None:
    root = tmp_path / "own"
    root.mkdir()
    dataset = dataset_of(smooth_image(60, 60, 1), PixelSpacing=[0.1, 0.2], Modality="DX")
    (root / "a.dcm").write_bytes(data_of(dataset))
    reader = build([Record(source_id="a", image=File("a.dcm"), patient="a", **record)], root)
    assert reader.read(0).meta["original"]["spacing_mm"] == expected


def survey(root: Path, records: list[Record]) -> None:
    survey_images(root, records, grid_params(), shard_params())


def test_a_delivery_of_resized_copies_is_refused_where_it_is_registered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Box(label="Mass", row0=10, col0=10, row1=30, col1=30)
    records = [
        Record(source_id=str(n), image=File(f"{n}.png"), patient=str(n), boxes=(box,), size=(60, 60)) for n in range(4)
    ]
    for number in range(4):
        write_image(tmp_path, f"{number}.png", (60, 60) if number < 3 else (30, 30))
    survey(tmp_path, records)
    text = "do not fit 1 of the 4 images that have some and were looked at, first an image of 30 x 30 pixels"
    assert f"{text}, coordinates {OTHER_SIZE} of 60 x 60 pixels" in capsys.readouterr().err
    for number in range(3):
        write_image(tmp_path, f"{number}.png", (30, 30))
    with pytest.raises(SourceError, match=r"do not fit 4 of the 4 images.*expected the published images"):
        survey(tmp_path, records)
    with pytest.raises(SourceError, match=rf"coordinates {OUTSIDE}; expected"):
        survey(
            tmp_path,
            [
                replace(record, size=None, boxes=(Box(label="Mass", row0=10, col0=10, row1=50, col1=30),))
                for record in records
            ],
        )
    survey(tmp_path, [replace(record, boxes=()) for record in records])
