"""Masks, boxes and landmarks in the columns of a user's CSV."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.core.errors import SourceError
from shards.core.records import Box, File, MaskFiles
from shards.decode.annotations import OTHER_SIZE
from shards.decode.masks import MASK_SIZE
from shards.format.index import LostAnnotations
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.check import check_source
from shards.sources.datasets.folder import NO_ROW, FolderSource
from tests.shards.sources.trees import by_id, mask_paths
from tests.support.datasets import NO_CHECKS, Here, folder_params, grid_params, shard_params, write_csv, write_folder

HEIGHT, WIDTH = 40, 30
COLUMNS = ("path", "nodule", "mask:lungs", "mask:heart", "box:nodule", "landmark:carina", "height", "width")
ROWS = [
    ("a.png", 1, "masks/a.png", "0", "1 2 3.5 4; 10 11 20 21", "12.5 8", HEIGHT, WIDTH),
    ("deep/b.png", 0, "masks\\b.png", "", "", "", "", ""),
    ("c.png", "", "", "", "", "0 30", HEIGHT, WIDTH),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, and masks of the left half of two of them."""
    root = tmp_path / "own"
    write_folder(root, [row[0] for row in ROWS])
    (root / "masks").mkdir()
    for name in ("a", "b"):
        save_half(root / "masks" / f"{name}.png", HEIGHT, WIDTH)
    return root


def save_half(path: Path, height: int, width: int) -> None:
    Image.fromarray(np.arange(width) < width // 2).resize((width, height)).save(path)


def labelled(root: Path, rows: list[tuple], columns: tuple[str, ...] = COLUMNS) -> FolderSource:
    write_csv(root.parent / "labels.csv", columns, rows)
    return FolderSource(root.parent / "labels.csv")


def build(root: Path, rows: list[tuple]) -> ShardReader:
    """Shards of the folder with a CSV of these rows."""
    source = labelled(root, rows)
    params = folder_params(root, root.parent / "manifest.jsonl", source.labels)
    out = root.parent / "out"
    build_shards("own-b000", params, grid_params(), shard_params(quality=NO_CHECKS), out, execution=Here())
    return ShardReader(ShardIndex.open(out))


def test_a_csv_gives_masks_boxes_and_landmarks_with_the_size_they_were_given_for(root: Path) -> None:
    source = labelled(root, ROWS)
    check_source(source, root)
    listing = source.read(root)
    a, b, c = (by_id(listing)[row[0]] for row in ROWS)
    assert a.masks == {"lungs": MaskFiles(files=(File("masks/a.png"),)), "heart": MaskFiles(files=())}
    assert a.boxes == (
        Box(label="nodule", row0=1, col0=2, row1=3.5, col1=4),
        Box(label="nodule", row0=10, col0=11, row1=20, col1=21),
    )
    assert (a.landmarks, a.size) == ({"carina": (12.5, 8)}, (HEIGHT, WIDTH))
    assert (mask_paths(b, "lungs"), b.boxes, b.landmarks, b.size) == (["masks/b.png"], (), {}, None)
    assert (c.masks, c.landmarks) == ({}, {"carina": (0, 30)})
    assert [record.labels for record in (a, b, c)] == [{"nodule": 1}, {"nodule": 0}, {"nodule": None}]


def test_the_files_of_masks_are_no_images_and_not_left_out(root: Path) -> None:
    write_folder(root, ["spare.png"])
    listing = labelled(root, ROWS).read(root)
    assert listing.left_out == {"spare.png": NO_ROW}
    assert f"left out 1 {NO_ROW}" in listing.warnings


def test_a_mask_whose_letters_are_typed_in_other_code_points_is_found(root: Path) -> None:
    composed = unicodedata.normalize("NFC", "masks/Jo\u0308rg.png")
    (root / "masks" / "a.png").rename(root / unicodedata.normalize("NFD", composed))
    (record, *_) = labelled(root, [("a.png", 1, composed, "", "", "", "", ""), *ROWS[1:]]).read(root).records
    assert mask_paths(record, "lungs") == [unicodedata.normalize("NFD", composed)]


def test_what_a_csv_draws_stands_in_the_shards(root: Path) -> None:
    reader = build(root, ROWS)
    samples = [reader.read(row) for row in range(len(ROWS))]
    a = next(sample for sample in samples if sample.meta["boxes"])
    assert sorted(a.masks()) == ["heart", "lungs"]
    assert not a.masks()["heart"].any()
    scale = a.meta["grid"]["affine"][0][0]
    assert a.masks()["lungs"].sum() == pytest.approx(HEIGHT * WIDTH / 2 * scale**2, rel=0.02)
    assert [box["label"] for box in a.meta["boxes"]] == ["nodule", "nodule"]
    assert list(a.landmarks) == ["carina"]
    assert not reader.index.description.counts.lost_annotations


def test_a_mask_of_another_size_is_counted_and_its_image_stays(root: Path) -> None:
    save_half(root / "masks" / "a.png", HEIGHT, WIDTH + 1)
    reader = build(root, ROWS)
    assert len(reader.index.rows) == len(ROWS)
    assert reader.index.description.quarantined.count == 0
    lost = reader.index.description.counts.lost_annotations
    assert lost == {f"mask lungs: {MASK_SIZE}": LostAnnotations(images=1, parts=0, pixels=0)}
    assert sorted(name for row in range(len(ROWS)) for name in reader.read(row).masks()) == ["heart", "lungs"]


def test_coordinates_of_another_size_are_counted_and_their_image_stays(root: Path) -> None:
    reader = build(root, [(*ROWS[0][:6], 2 * HEIGHT, 2 * WIDTH), *ROWS[1:]])
    lost = reader.index.description.counts.lost_annotations
    assert {text: counts.images for text, counts in lost.items()} == {
        f"box nodule: {OTHER_SIZE}": 1,
        f"landmark carina: {OTHER_SIZE}": 1,
    }


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("mask:lungs", "../doe.png", "line 2: column 'mask:lungs': the path leaves the folder"),
        ("mask:lungs", "/etc/doe.png", "line 2: column 'mask:lungs': the path leaves the folder"),
        ("mask:lungs", "masks/doe.png", "1 rows name no file of a mask, first: line 2"),
        ("mask:lungs", "c.png", "1 rows name an image as a mask, first: line 2"),
        ("mask:a lung", "masks/a.png", "column 3 has no name that a mask or landmark may have"),
        ("landmark:", "1 2", "column 3 has no name that a mask or landmark may have"),
        ("landmark:carina", "1,5 doe", "line 2: column 'landmark:carina': expected ROW COL in pixels: 2 numbers"),
        ("landmark:carina", "1 2 3", "expected ROW COL"),
        ("landmark:carina", "nan 3", "expected ROW COL"),
        ("landmark:carina", "-1 3", "numbers from 0"),
        ("box:nodule", "1 2 3", "line 2: column 'box:nodule': expected ROW0 COL0 ROW1 COL1"),
        ("box:nodule", "5 2 3 4", "the first corner above and left of the second"),
        ("box:nodule", "1 2 3 4;", "expected ROW0 COL0 ROW1 COL1"),
        ("box:mass", "1 2 3 4", "column 3 has boxes of a finding without labels"),
    ],
)
def test_a_wrong_cell_or_column_is_one_message_without_its_value(
    column: str, value: str, words: str, root: Path
) -> None:
    rows = [("a.png", 1, value, HEIGHT, WIDTH), ("c.png", 1, "", "", "")]
    with pytest.raises(SourceError) as error:
        labelled(root, rows, ("path", "nodule", column, "height", "width")).read(root)
    assert words in str(error.value)
    assert "doe" not in str(error.value)


@pytest.mark.parametrize("size", [("", ""), (40, ""), ("0", "30"), ("forty", "30"), ("40.5", "30")])
def test_coordinates_without_a_size_are_refused(size: tuple, root: Path) -> None:
    rows = [("a.png", "1 2", *size)]
    with pytest.raises(SourceError, match=r"line 2: .*height and width"):
        labelled(root, rows, ("path", "landmark:carina", "height", "width")).read(root)
    with pytest.raises(SourceError, match="not both of the columns height and width"):
        labelled(root, [("a.png", "1 2", 40)], ("path", "landmark:carina", "height")).read(root)


def test_a_mask_behind_a_link_out_of_the_folder_is_refused(root: Path) -> None:
    save_half(root.parent / "elsewhere.png", HEIGHT, WIDTH)
    (root / "masks" / "a.png").unlink()
    (root / "masks" / "a.png").symlink_to(root.parent / "elsewhere.png")
    with pytest.raises(SourceError, match="a symbolic link leads out of the folder"):
        labelled(root, ROWS).read(root)
