import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from shards.core.records import File, Mask, MaskFiles, MaskPolygons, MaskRuns
from shards.decode import UnreadableImageError, masks
from shards.decode.masks import MASK_OUTSIDE, MASK_POINTS, MASK_SIZE
from tests.oracles import masks as oracle

NO_FILES = Path("/nonexistent")
LIMIT = 1e6


def draw(mask: Mask, size: tuple[int, int], root: Path = NO_FILES) -> np.ndarray:
    return masks.draw(mask, size, lambda file: (root / file.path).read_bytes(), LIMIT)


def refusal(mask: Mask, size: tuple[int, int], root: Path = NO_FILES) -> str:
    with pytest.raises(UnreadableImageError) as error:
        draw(mask, size, root)
    return str(error.value)


def save(path: Path, image: Image.Image, **options: object) -> File:
    image.save(path, **options)
    return File(path.name)


@st.composite
def run_masks(draw_: st.DrawFn) -> MaskRuns:
    height, width = draw_(st.integers(1, 7)), draw_(st.integers(1, 7))
    annotations = []
    for _ in range(draw_(st.integers(0, 3))):
        left, runs = height * width, []
        for _ in range(draw_(st.integers(1, 5))):
            skipped = draw_(st.integers(0, left))
            inside = draw_(st.integers(0, left - skipped))
            left -= skipped + inside
            runs.append((skipped, inside))
        annotations.append(tuple(runs))
    return MaskRuns(tuple(annotations), height, width)


@given(run_masks())
def test_runs_draw_what_a_pen_draws_that_goes_down_the_columns(mask: MaskRuns) -> None:
    drawn = draw(mask, (mask.height, mask.width))
    assert drawn.dtype == bool
    np.testing.assert_array_equal(drawn, oracle.walk_runs(mask.runs, mask.height, mask.width))


def test_runs_are_relative_column_major_and_ored() -> None:
    mask = MaskRuns((((1, 2), (2, 1)), ((2, 2),)), height=3, width=3)
    # First annotation: pixels 1, 2, 5; second: 2, 3; counted down the columns.
    np.testing.assert_array_equal(draw(mask, (3, 3)), np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]], bool))


def test_a_run_may_end_at_the_last_pixel_and_no_later() -> None:
    assert draw(MaskRuns((((8, 1),),), 3, 3), (3, 3))[2, 2]
    assert refusal(MaskRuns((((8, 2),),), 3, 3), (3, 3)) == MASK_OUTSIDE
    assert refusal(MaskRuns((((10, 0), (0, 0)),), 3, 3), (3, 3)) == MASK_OUTSIDE
    assert refusal(MaskRuns((((9, -1),),), 3, 3), (3, 3)) == MASK_OUTSIDE


def test_runs_of_another_size_than_the_image_are_refused() -> None:
    assert refusal(MaskRuns((), 3, 4), (4, 3)) == MASK_SIZE


QUARTERS = st.integers(-8, 40).map(lambda value: value / 4)
RINGS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=3, max_size=8)


@given(st.lists(RINGS, max_size=3), st.integers(1, 9), st.integers(1, 9))
def test_polygons_hold_the_pixels_whose_centres_are_in_any_ring(
    rings: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    # Quarters: corners and edges on pixel centres and beyond the borders.
    mask = MaskPolygons(tuple(map(tuple, rings)))
    np.testing.assert_array_equal(draw(mask, (height, width)), oracle.fill_rings(rings, height, width))


@given(st.lists(st.tuples(*[st.floats(-3, 12, allow_subnormal=False)] * 2), min_size=3, max_size=6))
@example([(0.0, 0.0), (0.0, 0.0), (4.401961123612189, 4.401961123612189)])
def test_polygons_agree_with_the_oracle_off_the_lattice(ring: list[tuple[float, float]]) -> None:
    drawn, expected = draw(MaskPolygons((tuple(ring),)), (9, 9)), oracle.fill_rings([ring], 9, 9)
    for row, col in np.argwhere(drawn != expected).tolist():
        # Only where rounding decides: an edge passes the centre within float's precision.
        assert min(abs(crossing - col - 0.5) for crossing in oracle.crossings(row + 0.5, ring)) < 1e-9


def test_a_ring_that_crosses_itself_is_even_odd_and_rings_are_ored() -> None:
    # A pentagram's heart is crossed twice: outside. Two overlapping squares stay filled where they overlap.
    star = tuple((10 + 9 * np.sin(angle), 10 + 9 * np.cos(angle)) for angle in 4 * np.pi / 5 * np.arange(5))
    drawn = draw(MaskPolygons((star,)), (20, 20))
    assert drawn.any()
    assert not drawn[10, 10]
    first, second = ((0.0, 0.0), (0.0, 4.0), (4.0, 4.0), (4.0, 0.0)), ((2.0, 2.0), (2.0, 6.0), (6.0, 6.0), (6.0, 2.0))
    assert draw(MaskPolygons((first, second)), (6, 6)).sum() == 16 + 16 - 4


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    left = ((0.0, 0.0), (0.0, 3.5), (5.0, 2.5), (5.0, 0.0))
    right = ((0.0, 3.5), (0.0, 6.0), (5.0, 6.0), (5.0, 2.5))
    drawn = [draw(MaskPolygons((ring,)), (5, 6)) for ring in (left, right)]
    np.testing.assert_array_equal(drawn[0] ^ drawn[1], np.ones((5, 6), bool))


@pytest.mark.parametrize("far", [1e300, -1e300, 1e18])
def test_a_polygon_may_reach_far_beyond_the_image(far: float) -> None:
    row_of_it = draw(MaskPolygons((((0.0, 0.0), (0.0, far), (2.0, far), (2.0, 0.0)),)), (3, 3))
    assert row_of_it[:2].all() == (far > 0)
    assert not row_of_it[2].any()


def test_a_polygon_needs_numbers() -> None:
    assert refusal(MaskPolygons((((0.0, 0.0), (float("nan"), 1.0), (2.0, 2.0)),)), (3, 3)) == MASK_POINTS
    assert refusal(MaskPolygons((((0.0, 0.0), (float("inf"), 1.0), (2.0, 2.0)),)), (3, 3)) == MASK_POINTS


@pytest.mark.parametrize("mask", [MaskFiles(files=()), MaskRuns((), 4, 5), MaskPolygons(())])
def test_a_structure_known_to_be_absent_is_nowhere(mask: Mask) -> None:
    drawn = draw(mask, (4, 5))
    assert (drawn.shape, drawn.dtype, drawn.any()) == ((4, 5), bool, False)


def test_files_are_ored_and_inside_is_between_low_and_high(tmp_path: Path) -> None:
    one = save(tmp_path / "one.png", Image.fromarray(np.array([[0, 1, 127], [128, 254, 255]], np.uint8)))
    two = save(tmp_path / "two.bmp", Image.fromarray(np.array([[0, 0, 0], [0, 0, 200]], np.uint8)))
    expected = {
        (1, 255): [[0, 1, 1], [1, 1, 1]],
        (128, 255): [[0, 0, 0], [1, 1, 1]],
        (0, 0): [[1, 1, 1], [1, 1, 0]],
        (127, 128): [[0, 0, 1], [1, 0, 0]],
    }
    for (low, high), values in expected.items():
        drawn = draw(MaskFiles(files=(one, two), low=low, high=high), (2, 3), tmp_path)
        np.testing.assert_array_equal(drawn, np.array(values, bool), err_msg=f"{low}..{high}")


def test_a_ring_there_and_back_encloses_nothing() -> None:
    assert not draw(MaskPolygons((((0.0, 0.0), (0.0, 0.0), (4.401961123612189, 4.401961123612189)),)), (9, 9)).any()


@pytest.mark.parametrize(
    ("greys", "inside"),
    [
        ((3, 253), (0, 1)),  # the second observer of DRIVE
        ((0, 76), (0, 1)),  # the red of IDRiD's palettes
        ((0, 1), (0, 1)),
        ((0, 255), (0, 1)),
        ((0, 127, 128, 255), (0, 0, 1, 1)),  # a soft edge
        ((3, 3), (0, 0)),
        ((0, 0), (0, 0)),
        ((255, 255), (1, 1)),
    ],
)
def test_a_file_of_two_levels_is_inside_where_it_is_brighter_than_half_of_its_range(
    greys: tuple[int, ...], inside: tuple[int, ...], tmp_path: Path
) -> None:
    file = save(tmp_path / "mask.gif", Image.fromarray(np.array([greys], np.uint8)))
    drawn = draw(MaskFiles(files=(file,)), (1, len(greys)), tmp_path)
    np.testing.assert_array_equal(drawn, np.array([inside], bool))


@pytest.mark.parametrize("kind", ["palette gif", "one bit", "colour", "tiff", "alpha"])
def test_every_form_of_file_is_read_as_grey(kind: str, tmp_path: Path) -> None:
    inside = np.array([[0, 1, 0], [1, 1, 0]], bool)
    grey = Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))
    palette = Image.fromarray(inside.astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    image, suffix = {
        "palette gif": (palette, "gif"),
        "one bit": (Image.fromarray(inside), "png"),
        "colour": (grey.convert("RGB"), "png"),
        "tiff": (grey, "tif"),
        "alpha": (grey.convert("RGBA"), "png"),
    }[kind]
    file = save(tmp_path / f"mask.{suffix}", image)
    np.testing.assert_array_equal(draw(MaskFiles(files=(file,)), (2, 3), tmp_path), inside)


@given(*[st.integers(1, 9)] * 4, st.integers(0, 2**32 - 1))
def test_a_scaled_mask_takes_the_nearest_pixel(
    from_height: int, from_width: int, height: int, width: int, seed: int
) -> None:
    grey = np.random.default_rng(seed).integers(0, 2, (from_height, from_width), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = save(Path(folder) / "mask.png", Image.fromarray(grey))
        drawn = draw(MaskFiles(files=(file,), low=1, is_scaled=True), (height, width), Path(folder))
    np.testing.assert_array_equal(drawn, oracle.nearest(grey, height, width) == 1)


def test_a_file_of_another_size_is_refused_unless_scaled(tmp_path: Path) -> None:
    file = save(tmp_path / "mask.png", Image.new("L", (4, 3), 255))
    assert refusal(MaskFiles(files=(file,)), (4, 3), tmp_path) == MASK_SIZE
    assert draw(MaskFiles(files=(file,), is_scaled=True), (4, 3), tmp_path).all()


def test_a_damaged_file_is_refused_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    cases = {"empty": b"", "text": b"<html>", "half": whole[: len(whole) // 2], "head": whole[:20]}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(MaskFiles(files=(File(name),)), (40, 40), tmp_path).startswith("a mask: "), name


def test_grey_deeper_than_8_bits_is_refused_rather_than_saturated(tmp_path: Path) -> None:
    file = save(tmp_path / "deep.png", Image.fromarray(np.full((3, 4), 256, np.uint16)))
    assert refusal(MaskFiles(files=(file,)), (3, 4), tmp_path).startswith("a mask: ")


def test_a_file_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    file = save(tmp_path / "large.png", Image.new("L", (1001, 1000), 255))
    assert "more pixels than" in refusal(MaskFiles(files=(file,), is_scaled=True), (3, 4), tmp_path)
