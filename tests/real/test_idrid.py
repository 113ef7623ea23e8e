"""Lesions of real fundus photographs of 4288 x 2848 pixels on a canvas of 288."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.core.canvas import connected_parts
from shards.core.identity import KEY_FILE_VARIABLE
from shards.reading.reader import Sample, ShardIndex, ShardReader
from shards.runtime.scratch import SCRATCH_VARIABLE
from shards.sources.datasets.folder import FolderSource
from shards.sources.datasets.idrid import LESIONS, SIZE, SOURCE
from tests.real.data import DATA, needs
from tests.support.datasets import NO_CHECKS, TEST_KEY, Here, delivered, grid_params, shard_params, write_csv

pytestmark = [*needs("idrid-original"), pytest.mark.slow]
ROOT = DATA / "idrid-original"
NAMES = ("11", "15", "16", "25", "61", "63", "68")
LOST_PX, LAST_COLUMN = 48_416, 3689
"""Of IDRiD_61's haemorrhages, what lies right of a column behind which only an arc of the disc is bright."""


@pytest.fixture(
    scope="module", params=[pytest.param(None, id="whole", marks=pytest.mark.slow), pytest.param(25, id="trimmed")]
)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Shards of all photographs, whole or without their dark edges."""
    folder = tmp_path_factory.mktemp("idrid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH_VARIABLE, str(folder / "scratch"))
        patch.delenv(KEY_FILE_VARIABLE, raising=False)
        source = delivered(SOURCE.read(ROOT), ROOT, folder / "manifest.jsonl", channels=3)
        grid = grid_params(n=18, cell_px=16, trim_level=request.param)
        params = shard_params(max_source_megapixels=20.0, quality=NO_CHECKS)
        build_shards("idrid-b000", source, grid, params, folder / "out", execution=Here())
    return ShardReader(ShardIndex.open(folder / "out"))


def sample_of(reader: ShardReader, name: str) -> Sample:
    keys = list(reader.index.keys(np.arange(len(reader.index.rows))))
    return reader.read(keys.index(TEST_KEY.pseudonym("source", f"segmentation/IDRiD_{name}")))


def masks_of(name: str) -> dict[str, np.ndarray]:
    """Lesion → what its file draws: every pixel that is not black."""
    return {
        lesion: np.asarray(Image.open(path).convert("RGB")).any(axis=2)
        for lesion, (folder, suffix) in LESIONS.items()
        for path in ROOT.glob(f"*/2. All*/*/{folder}/IDRiD_{name}_{suffix}.tif")
    }


def canvas_pixels(sample: Sample, size: tuple[int, int]) -> list[np.ndarray]:
    """The row of the canvas in which each row of the photograph has its centre, and the same of columns."""
    (down, _, row), (_, right, col) = sample.meta["grid"]["affine"]
    places = ((np.arange(size[0]) + 0.5) * down + row, (np.arange(size[1]) + 0.5) * right + col)
    return [np.floor(place).astype(int) for place in places]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_lesion_is_on_the_canvas_or_counted_as_lost(name: str, reader: ShardReader) -> None:
    sample = sample_of(reader, name)
    placed, lost = sample.masks(), {loss["name"]: loss for loss in sample.meta.get("lost", [])}
    drawn_masks = masks_of(name)
    assert set(drawn_masks) <= set(placed) == set(LESIONS)
    for lesion, drawn in drawn_masks.items():
        num_parts, parts = connected_parts(drawn)
        rows, cols = canvas_pixels(sample, drawn.shape)
        # A pixel of the photograph beyond the canvas was cut off.
        canvas = np.pad(placed[lesion], 500)
        seen = np.unique(parts[canvas[rows + 500][:, cols + 500]])
        loss = lost.get(f"mask {lesion}", {"num_parts": 0, "num_pixels": 0})
        assert num_parts == np.count_nonzero(seen) + loss["num_parts"], lesion
        # The area stays, but for the pixel that a lesion has at least.
        (down, _, _), (_, right, _) = sample.meta["grid"]["affine"]
        area = (np.count_nonzero(drawn) - loss["num_pixels"]) * down * right
        assert area - 1 <= placed[lesion].sum() <= area + num_parts, lesion


@pytest.mark.parametrize("name", NAMES)
def test_what_the_cut_takes_away_is_counted(name: str, reader: ShardReader) -> None:
    sample = sample_of(reader, name)
    is_trimmed = reader.index.spec.trim_level is not None
    expected = LOST_PX if name == "61" and is_trimmed else 0
    if expected:
        assert np.count_nonzero(masks_of(name)["haemorrhages"][:, LAST_COLUMN:]) == expected
        assert [(loss["name"], loss["num_pixels"]) for loss in sample.meta["lost"]] == [("mask haemorrhages", expected)]
    else:
        assert "lost" not in sample.meta


def test_the_index_adds_it_up(reader: ShardReader) -> None:
    counts = reader.index.description.counts
    found = {text: (lost.images, lost.pixels) for text, lost in counts.lost_annotations.items()}
    text = "mask haemorrhages: partly in the dark edges that were cut off"
    assert found == ({} if reader.index.spec.trim_level is None else {text: (1, LOST_PX)})
    assert reader.index.description.quarantined.count == 0
    assert not counts.suspect_masks


@pytest.mark.slow
def test_the_same_masks_given_by_a_csv_are_placed_alike(reader: ShardReader, tmp_path: Path) -> None:
    folders = {path.name: path.relative_to(ROOT) for path in ROOT.rglob("*.*")}
    rows, names = [], ("11", "61")  # of one the cut takes a lesion's part away
    for name in names:
        masks = (folders.get(f"IDRiD_{name}_{suffix}.tif", 0) for _, suffix in LESIONS.values())
        rows.append((folders[f"IDRiD_{name}.jpg"], name, *masks, *SIZE))
    labels = tmp_path / "labels.csv"
    write_csv(labels, ("path", "patient", *(f"mask:{lesion}" for lesion in LESIONS), "height", "width"), rows)
    listing = FolderSource(labels).read(ROOT)
    source = delivered(listing, ROOT, tmp_path / "manifest.jsonl", channels=3)
    params = shard_params(max_source_megapixels=20.0, quality=NO_CHECKS)
    grid = grid_params(n=18, cell_px=16, trim_level=reader.index.spec.trim_level)
    build_shards("own-b000", source, grid, params, tmp_path / "out", execution=Here())
    own = ShardReader(ShardIndex.open(tmp_path / "out"))
    keys = list(own.index.keys(np.arange(len(own.index.rows))))
    for name in names:
        key = TEST_KEY.pseudonym("source", folders[f"IDRiD_{name}.jpg"].as_posix())
        given, expected = own.read(keys.index(key)), sample_of(reader, name)
        assert given.meta.get("lost") == expected.meta.get("lost")
        assert given.masks().keys() == expected.masks().keys()
        for lesion, mask in given.masks().items():
            assert np.array_equal(mask, expected.masks()[lesion]), lesion
