"""The whole chain of DICOM's grey values, against the standard's formulas for one value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.decode.dicom_image import decode_dicom
from shards.decode.display import Look, Lookup, VoiWindow, show
from tests.oracles.dicom_display import grey_level, value_of_cell
from tests.shards.decode.dicom_files import data_of, dataset_of

FUNCTIONS = st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])


@given(
    seed=st.integers(0, 2**32),
    bits=st.integers(2, 16),
    room=st.integers(0, 14),
    is_signed=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, 0.25, -1.0, -3.5]),
    intercept=st.integers(-4096, 4096),
    place=st.floats(-0.2, 1.2),
    extent=st.floats(0.0, 1.5),
    function=FUNCTIONS,
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    shape=st.sampled_from([None, "IDENTITY", "INVERSE"]),
)
def test_every_pixel_is_the_standards(
    seed: int,
    bits: int,
    room: int,
    is_signed: bool,
    slope: float,
    intercept: int,
    place: float,
    extent: float,
    function: str,
    photometric: str,
    shape: str | None,
) -> None:
    high_bit = min(15, bits - 1 + room)
    rng = np.random.default_rng(seed)
    cells = (rng.integers(0, 2**bits, (5, 7)) << (high_bit + 1 - bits)).astype(np.uint16)
    values = [value_of_cell(int(cell), bits, high_bit, is_signed) * slope + intercept for cell in cells.ravel()]
    center = round(min(values) + place * (max(values) - min(values)), 2)
    width = round(2 + extent * (max(values) - min(values)), 2)
    dataset = dataset_of(
        cells,
        bits=bits,
        HighBit=high_bit,
        PixelRepresentation=int(is_signed),
        PhotometricInterpretation=photometric,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=[center, 1.0],
        WindowWidth=[width, 2.0],
        VOILUTFunction=function,
    )
    if shape is not None:
        dataset.PresentationLUTShape = shape
    result = decode_dicom(data_of(dataset), max_pixels=100)
    expected = [grey_level(value, center, width, function, photometric == "MONOCHROME1") for value in values]
    assert np.abs(result.pixels.ravel() - np.array(expected)).max() <= 0.5 + 1e-6
    assert result.facts.flags == ()
    assert result.facts.window_rule == ("voi sigmoid" if function == "SIGMOID" else "voi window")


@given(
    first=st.integers(-50, 50),
    entries=st.lists(st.integers(0, 1023), min_size=1, max_size=40),
    values=st.lists(st.integers(-120, 120), min_size=1, max_size=40),
)
def test_a_table_gives_its_ends_to_values_beyond_it(first: int, entries: list[int], values: list[int]) -> None:
    table = Lookup(first, np.array(entries), 10)
    expected = [entries[min(max(value - first, 0), len(entries) - 1)] for value in values]
    assert table(np.array(values, float)).tolist() == expected
    look = Look(modality=table, voi=table, is_eight_bit=False, is_inverted=False)
    shown = show(np.array(values), np.ones(len(values), int), np.zeros(len(values), bool), look)
    through = [entries[min(max(entry - first, 0), len(entries) - 1)] / 1023 * 255 for entry in expected]
    assert np.abs(shown.levels - np.array(through)).max() <= 0.5


@pytest.mark.parametrize(
    ("center", "width", "function", "is_one"),
    [
        (0.0, 1.0, "LINEAR", True),
        (0.0, 0.99, "LINEAR", False),
        (0.0, 0.5, "LINEAR_EXACT", True),
        (0.0, 0.0, "LINEAR_EXACT", False),
        (0.0, 0.0, "SIGMOID", False),
        (0.0, -4.0, "LINEAR", False),
        (float("nan"), 4.0, "LINEAR", False),
        (0.0, float("inf"), "SIGMOID", False),
    ],
)
def test_what_is_no_window_says_so(center: float, width: float, function: str, is_one: bool) -> None:
    assert VoiWindow(center, width, function).is_one is is_one


@given(st.floats(-100, 100), st.floats(1.5, 500), st.sampled_from(["LINEAR", "LINEAR_EXACT"]))
def test_the_ends_of_a_window_are_where_black_ends_and_white_begins(center: float, width: float, function: str) -> None:
    window = VoiWindow(center, width, function)
    low, high = window.ends
    assert window(np.array([low, (low + high) / 2, high])) == pytest.approx([0, 0.5, 1], abs=1e-9)


def test_padding_takes_no_part_in_the_window_and_is_black() -> None:
    stored = np.arange(6)
    counts = np.array([10**6, 1, 1, 1, 1, 10**6])
    is_padding = np.array([True, False, False, False, False, True])
    look = Look(modality=(1.0, 0.0), voi=None, is_eight_bit=False, is_inverted=True)
    shown = show(stored, counts, is_padding, look)
    assert shown.levels[[0, 5]].tolist() == [0, 0]
    assert shown.levels[[1, 4]].tolist() == [255, 0]
    assert shown.window == pytest.approx((1, 4), abs=0.02)


def test_nothing_but_padding_is_black() -> None:
    shown = show(
        np.arange(3),
        np.array([0, 9, 0]),
        np.array([False, True, False]),
        Look(modality=(1.0, 0.0), voi=None, is_eight_bit=False, is_inverted=True),
    )
    assert shown.levels[1] == 0
