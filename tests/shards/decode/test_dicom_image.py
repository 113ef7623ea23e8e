"""DICOM files written with pydicom, read as a viewer would show them."""

import logging
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import compress
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from shards.decode import Decoded, UnreadableImageError, reasons
from shards.decode.dicom_image import decode_dicom
from shards.decode.reasons import (
    BIT_DEPTH,
    COLOUR_SPACE,
    DAMAGED,
    EMPTY_LUT,
    MULTI_FRAME,
    NO_PIXEL_DATA,
    NO_PIXELS,
    NOT_DICOM,
    TOO_LARGE,
    TRUNCATED,
    UNKNOWN_SYNTAX,
    UNSAID_SYNTAX,
)
from shards.decode.result import ODD_PADDING, ODD_RESCALE, ODD_TABLE, ODD_WINDOW
from shards.decode.signature import is_dicom
from tests.shards.decode.dicom_files import RAMP, data_of, dataset_of
from tests.support.datasets import smooth_image

REASONS = {value for name, value in vars(reasons).items() if name.isupper()}
FILLED = np.clip((RAMP - 20.475) / 4054.05, 0, 1) * 255
"""RAMP from its 0.5th to its 99.5th percentile."""


def result_of(pixels: np.ndarray, **tags: Any) -> Decoded:
    return decode_dicom(data_of(dataset_of(pixels, **tags)), max_pixels=1e6)


def decoded(pixels: np.ndarray, **tags: Any) -> np.ndarray:
    return result_of(pixels, **tags).pixels


def pixels_of(data: bytes) -> np.ndarray:
    return decode_dicom(data, max_pixels=1e6).pixels


def reason_for(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode_dicom(data, max_pixels=max_pixels)
    return str(error.value)


def window(values: np.ndarray, center: float, width: float) -> list[float]:
    """PS3.3 C.11.2.1.2.1, value by value, onto 0..255."""
    shown = []
    for value in values.ravel().tolist():
        if value <= center - 0.5 - (width - 1) / 2:
            shown.append(0.0)
        elif value > center - 0.5 + (width - 1) / 2:
            shown.append(255.0)
        else:
            shown.append(((value - (center - 0.5)) / (width - 1) + 0.5) * 255)
    return shown


def test_twelve_bits_without_a_window_fill_the_range_from_percentile_to_percentile() -> None:
    assert np.abs(decoded(RAMP) - FILLED).max() <= 0.5
    assert np.array_equal(decoded(RAMP + np.uint16(7000), bits=16), decoded(RAMP))


@given(st.sampled_from([None, (2000.0, 1500.0), ([500.0, 9.0], [200.0, 9.0])]), st.sampled_from([None, "INVERSE"]))
def test_monochrome_1_and_2_of_one_picture_are_equal(voi: Any, shape: str | None) -> None:
    """The same picture: what is stored as v in one is stored as 4095 − v in the other, and windowed alike."""
    tags = {} if voi is None else {"WindowCenter": voi[0], "WindowWidth": voi[1]}
    bright = decoded(RAMP, **tags)
    if voi is not None:
        centers = np.atleast_1d(voi[0])
        # The window's middle, centre − 0.5, mirrored.
        tags["WindowCenter"] = [float(4096 - center) for center in centers]
    more = {} if shape is None else {"PresentationLUTShape": shape}
    dark = decoded(np.uint16(4095) - RAMP, PhotometricInterpretation="MONOCHROME1", **tags, **more)
    assert np.abs(bright.astype(int) - dark).max() <= 1  # halves are rounded to the even side
    assert np.mean(bright != dark) < 0.01
    assert bright.min() == 0
    assert bright.max() == 255


@given(st.integers(-200, 4200), st.integers(2, 5000))
def test_the_window_is_the_standards_formula(center: int, width: int) -> None:
    shown = decoded(RAMP, WindowCenter=float(center), WindowWidth=float(width))
    assert np.abs(shown.ravel() - np.array(window(RAMP, center, width))).max() <= 0.5 + 1e-9


def test_a_window_of_one_is_a_threshold() -> None:
    shown = decoded(RAMP, WindowCenter=100.0, WindowWidth=1.0)
    assert np.array_equal(shown, np.where(RAMP >= 100, 255, 0))


def test_the_window_acts_on_rescaled_values() -> None:
    shown = decoded(RAMP, RescaleSlope="2.0", RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")
    assert np.abs(shown.ravel() - np.array(window(RAMP * 2.0 - 1024, 40, 400))).max() <= 0.5


def test_a_negative_slope_turns_the_grey_levels_around() -> None:
    assert np.array_equal(decoded(RAMP, RescaleSlope="-1", RescaleIntercept="0"), decoded(np.uint16(4095) - RAMP))


def test_signed_values_are_read_as_such() -> None:
    assert np.array_equal(decoded((RAMP.astype(np.int16) - 2048), bits=16), decoded(RAMP))


@pytest.mark.parametrize(("function", "value_at_center"), [("LINEAR_EXACT", 127.5), ("SIGMOID", 127.5)])
def test_other_window_functions_have_their_middle_at_the_center(function: str, value_at_center: float) -> None:
    shown = decoded(RAMP, WindowCenter=2000.0, WindowWidth=1000.0, VOILUTFunction=function)
    assert shown.ravel()[2000] == pytest.approx(value_at_center, abs=0.5)
    assert shown.ravel()[2500] == pytest.approx(255 if function == "LINEAR_EXACT" else 255 / (1 + np.exp(-2)), abs=0.5)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_is_applied_and_goes_before_the_window(bits: int) -> None:
    table = ((np.arange(2000) / 1999) ** 2 * (2**bits - 1)).round().astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor = [2000, 1000, bits]
    item.LUTData = table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    shown = decoded(RAMP, VOILUTSequence=[item], WindowCenter=5.0, WindowWidth=3.0)
    expected = table[np.clip(RAMP.astype(int) - 1000, 0, 1999)] / (2**bits - 1) * 255
    assert np.abs(shown - expected).max() <= 0.5


def test_eight_bits_without_a_window_stay_as_they_are() -> None:
    pixels = smooth_image(20, 30, 1) // 2 + 20
    assert np.array_equal(decoded(pixels, RescaleSlope="1", RescaleIntercept="0"), pixels)
    assert np.array_equal(decoded(pixels, PhotometricInterpretation="MONOCHROME1"), 255 - pixels)


def test_eight_bits_in_words_stay_as_they_are() -> None:
    pixels = smooth_image(20, 30, 1) // 2 + 20
    assert np.array_equal(decoded(pixels.astype(np.uint16), bits=8), pixels)


@pytest.mark.parametrize(("center", "width"), [("100", "0"), ("100", "-5"), (None, "5"), ("100", None)])
def test_a_window_that_is_none_is_passed_over(center: str | None, width: str | None) -> None:
    assert np.array_equal(decoded(RAMP, WindowCenter=center, WindowWidth=width), decoded(RAMP))


@pytest.mark.parametrize("intercept", ["0", "-1024", None])
def test_a_slope_of_0_is_passed_over_with_a_flag(intercept: str | None) -> None:
    result = result_of(RAMP, RescaleSlope="0", RescaleIntercept=intercept)
    assert np.array_equal(result.pixels, decoded(RAMP))
    assert result.facts.flags == (ODD_RESCALE,)


def test_half_a_rescale_takes_the_other_half_at_its_default_with_a_flag() -> None:
    tags = {"WindowCenter": 2000.0, "WindowWidth": 3000.0}
    for half, whole in (
        ({"RescaleSlope": "2"}, {"RescaleSlope": "2", "RescaleIntercept": "0"}),
        ({"RescaleIntercept": "-900"}, {"RescaleSlope": "1", "RescaleIntercept": "-900"}),
        ({"RescaleSlope": "2", "RescaleIntercept": ""}, {"RescaleSlope": "2", "RescaleIntercept": "0"}),
    ):
        result = result_of(RAMP, **half, **tags)
        assert np.array_equal(result.pixels, decoded(RAMP, **whole, **tags))
        assert result.facts.flags == (ODD_RESCALE,)
        assert result_of(RAMP, **whole, **tags).facts.flags == ()


@pytest.mark.parametrize(
    ("center", "width"),
    [(["2000", ""], ["1500", ""]), (["2000", ""], ["1500", "40"]), (["2000", "9"], ["1500"]), ("2000", ["1500", ""])],
)
def test_a_whole_window_before_a_half_one_is_used(center: Any, width: Any) -> None:
    result = result_of(RAMP, WindowCenter=center, WindowWidth=width)
    assert np.array_equal(result.pixels, decoded(RAMP, WindowCenter="2000", WindowWidth="1500"))
    assert (result.facts.window_rule, result.facts.flags) == ("voi window", ())


@pytest.mark.parametrize(
    ("center", "width"), [(["", "2000"], ["", "1500"]), (["7", "2000"], ["", "1500"]), (["7", "2000"], ["0", "1500"])]
)
def test_the_first_window_that_is_one_is_used(center: Any, width: Any) -> None:
    result = result_of(RAMP, WindowCenter=center, WindowWidth=width)
    assert np.array_equal(result.pixels, decoded(RAMP, WindowCenter="2000", WindowWidth="1500"))
    assert result.facts.flags == (() if center[0] == "" else (ODD_WINDOW,))


@pytest.mark.parametrize(("center", "width"), [("100", "0"), ("100", "-5"), (None, "5"), ("100", None), ("100", "")])
def test_a_window_that_is_none_is_flagged(center: str | None, width: str | None) -> None:
    assert result_of(RAMP, WindowCenter=center, WindowWidth=width).facts.flags == (ODD_WINDOW,)


def test_a_window_of_which_nothing_is_given_is_not_flagged() -> None:
    assert result_of(RAMP, WindowCenter="", WindowWidth="").facts.flags == ()
    assert result_of(RAMP, RescaleSlope="", RescaleIntercept="").facts.flags == ()


def test_entries_above_the_bits_of_their_table_raise_them_with_a_flag() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 8], np.arange(4096, dtype=np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    result = result_of(RAMP, VOILUTSequence=[item])
    assert np.abs(result.pixels - RAMP / 4095 * 255).max() <= 0.5
    assert result.facts.flags == (ODD_TABLE,)


def test_padding_that_is_the_whole_picture_is_passed_over_with_a_flag() -> None:
    result = result_of(RAMP, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)
    assert np.array_equal(result.pixels, decoded(RAMP))
    assert result.facts.flags == (ODD_PADDING,)


def test_colour_stays_colour() -> None:
    pixels = np.stack([smooth_image(20, 30, seed) for seed in range(3)], axis=2)
    assert np.array_equal(decoded(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=0), pixels)
    planes = dataset_of(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=1)
    planes.PixelData = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)).tobytes()
    assert np.array_equal(pixels_of(data_of(planes)), pixels)


def test_lossless_compression_changes_nothing() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    assert np.array_equal(pixels_of(data_of(dataset)), decoded(RAMP))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("kept", ["preamble and meta", "preamble alone", "nothing"])
def test_a_file_without_its_transfer_syntax_is_read_if_it_is_clearly_dicom(syntax: str, kept: str) -> None:
    dataset = dataset_of(RAMP, syntax=syntax)
    data = data_of(dataset)
    start = data.index(b"\x08\x00\x16\x00")  # SOPClassUID, the first element after the file meta information
    if kept == "preamble and meta":
        whole = data
        data = whole.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x12\x00UI")  # TransferSyntaxUID under another tag
        assert data != whole
    else:
        data = (bytes(128) + b"DICM" if kept == "preamble alone" else b"") + data[start:]
    assert is_dicom(data)
    assert np.array_equal(pixels_of(data), decoded(RAMP))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(400), b"a,b\n", bytes(1000), b"\xff\xd8\xff" * 90])
def test_other_files_are_no_dicom(data: bytes) -> None:
    assert not is_dicom(data)
    assert reason_for(data) == NOT_DICOM


def test_several_frames_are_refused() -> None:
    frames = np.stack([RAMP, RAMP])
    dataset = dataset_of(RAMP, NumberOfFrames=2)
    dataset.PixelData = frames.tobytes()
    assert reason_for(data_of(dataset)) == MULTI_FRAME


def test_too_many_pixels_are_refused_before_decoding() -> None:
    assert reason_for(data_of(dataset_of(RAMP)), max_pixels=64 * 64 - 1) == TOO_LARGE
    assert reason_for(data_of(dataset_of(RAMP, Rows=60000, Columns=60000))) == TOO_LARGE


def test_a_report_has_no_image() -> None:
    dataset = dataset_of(RAMP)
    del dataset.PixelData, dataset.Rows, dataset.Columns
    assert reason_for(data_of(dataset)) == NO_PIXELS


def test_unknown_colours_are_refused() -> None:
    assert reason_for(data_of(dataset_of(RAMP, PhotometricInterpretation="PALETTE COLOR"))) == COLOUR_SPACE


@given(st.binary(min_size=1, max_size=30), st.integers(132, 900))
def test_any_damage_gives_pixels_or_a_fixed_reason(junk: bytes, place: int) -> None:
    data = data_of(dataset_of(RAMP, WindowCenter="2000", WindowWidth="700"))
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        outcome = pixels_of(damaged).dtype.name
    except UnreadableImageError as error:
        outcome = str(error)
    assert outcome == "uint8" or outcome in REASONS or outcome.startswith("DICOM pixels compressed ")


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9, 0.999])
def test_a_file_that_ends_within_its_pixels_is_truncated(kept: float) -> None:
    data = data_of(dataset_of(RAMP))
    start = len(data) - RAMP.nbytes
    assert reason_for(data[: start + int(RAMP.nbytes * kept)]) == TRUNCATED


def test_a_file_that_ends_before_its_pixels_is_no_report() -> None:
    dataset = dataset_of(RAMP)
    del dataset.PixelData
    assert reason_for(data_of(dataset)) == NO_PIXEL_DATA


@pytest.mark.parametrize("keyword", ["PatientName", "StudyDescription"])
def test_a_file_that_ends_within_an_element_of_its_header_is_no_report(keyword: str) -> None:
    data = data_of(dataset_of(RAMP, StudyDescription="a study of many words"))
    place = data.index({"PatientName": b"Doe^Jane", "StudyDescription": b"a study of"}[keyword])
    assert reason_for(data[: place + 4]) == NO_PIXEL_DATA


def test_a_file_that_ends_within_a_sequence_of_its_header_is_no_report() -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.4"
    dataset = dataset_of(RAMP, ReferencedStudySequence=[item])
    dataset["ReferencedStudySequence"].is_undefined_length = True
    data = data_of(dataset)
    assert reason_for(data[: data.index(b"1.2.3.4") + 4]) in (NO_PIXEL_DATA, DAMAGED)


def test_pixels_in_a_private_transfer_syntax_are_of_a_kind_that_is_not_read() -> None:
    """GE's: nothing is compressed, but pixels are big-endian where all else is little-endian."""
    data = data_of(dataset_of(RAMP, syntax=ImplicitVRLittleEndian))
    uid = data.index(b"1.2.840.10008.1.2\0")
    private = data[: uid - 2] + (18).to_bytes(2, "little") + b"1.2.840.113619.5.2" + data[uid + 18 :]
    assert reason_for(private) == UNKNOWN_SYNTAX


def test_fewer_data_than_the_header_speaks_of_are_refused_and_more_are_flagged() -> None:
    assert reason_for(data_of(dataset_of(RAMP, Rows=65))) == TRUNCATED
    result = result_of(RAMP, Rows=32)
    assert result.facts.flags == ("more pixel data than the header says",)
    assert result.pixels.shape == (32, 64)


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_a_window_without_width_gives_way_to_the_percentiles_of_what_is_no_padding(function: str) -> None:
    padded = np.concatenate([np.full((64, 64), 4095, np.uint16), RAMP // 2])
    tags = {"WindowCenter": 9.0, "WindowWidth": 0.0, "VOILUTFunction": function}
    result = result_of(padded, PixelPaddingValue=4095, **tags)
    alone = result_of(RAMP // 2, **tags)
    assert np.array_equal(result.pixels[64:], alone.pixels)
    assert not result.pixels[:64].any()
    assert result.facts.window == alone.facts.window
    assert result.facts.window_rule == "percentiles"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 16])
def test_padding_is_black_after_the_inversion_too(photometric: str, bits: int) -> None:
    pixels = np.full((20, 20), 60, f"u{bits // 8}")
    pixels[:, 10:] = np.arange(10) + 100
    pixels[:5] = 7
    shown = decoded(pixels, bits=bits, PhotometricInterpretation=photometric, PixelPaddingValue=7)
    assert not shown[:5].any()
    assert (shown[5:, 10:] > 0).sum() >= 15 * 9


@pytest.mark.parametrize(("first", "last"), [(100, 200), (200, 100)])
def test_a_range_of_padding_has_both_its_ends(first: int, last: int) -> None:
    shown = decoded(
        RAMP + np.uint16(1), PixelPaddingValue=first, PixelPaddingRangeLimit=last, WindowCenter=-5.0, WindowWidth=2.0
    )
    assert np.array_equal(shown == 0, (RAMP + 1 >= 100) & (RAMP + 1 <= 200))


def test_padding_of_signed_pixels_may_be_written_without_its_sign() -> None:
    pixels = RAMP.astype(np.int16) - 2048
    pixels[0] = -2000
    expected = decoded(pixels, bits=16, PixelPaddingValue=-2000)
    dataset = dataset_of(pixels, bits=16)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert np.array_equal(pixels_of(data_of(dataset)), expected)
    assert not expected[0].any()


def test_values_above_the_bits_stored_are_shown_as_they_are_and_flagged() -> None:
    pixels = RAMP.copy()
    pixels[0, :3] = 16000, 40000, 65535
    tags = {"WindowCenter": 30000.0, "WindowWidth": 60000.0}
    result = result_of(pixels, bits=12, **tags)
    assert np.array_equal(result.pixels, result_of(pixels, bits=16, **tags).pixels)
    assert result.facts.flags == ("values above bits stored",)
    assert result_of(RAMP, **tags).facts.flags == ()


def test_an_overlay_in_the_unused_bits_is_no_value() -> None:
    dataset = dataset_of(RAMP | np.uint16(0x8000))
    dataset.add_new((0x6000, 0x0100), "US", 16)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    result = decode_dicom(data_of(dataset), max_pixels=1e6)
    assert np.array_equal(result.pixels, decoded(RAMP))
    assert result.facts.flags == ()


def test_values_may_lie_in_the_high_bits_of_their_cells() -> None:
    tags = {"WindowCenter": 2048.0, "WindowWidth": 4096.0}
    assert np.array_equal(decoded(RAMP << 4, HighBit=15, **tags), decoded(RAMP, **tags))


def test_signed_values_may_fill_their_cells_with_zeros_or_with_their_sign() -> None:
    signed = RAMP.astype(np.int16) - 2048
    tags = {"WindowCenter": 0.0, "WindowWidth": 4096.0}
    extended, zeros = result_of(signed, **tags), result_of(signed & np.int16(0x0FFF), **tags)
    assert np.array_equal(extended.pixels, zeros.pixels)
    assert extended.facts.flags == zeros.facts.flags == ()
    assert np.array_equal(extended.pixels, result_of(RAMP, WindowCenter=2048.0, WindowWidth=4096.0).pixels)


def test_a_modality_table_goes_before_the_window() -> None:
    table = (np.arange(4096)[::-1] * 3).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [4096, 0, 16], table.tobytes(), "US"
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    shown = decoded(RAMP, ModalityLUTSequence=[item], WindowCenter=6000.0, WindowWidth=3000.0)
    expected = np.array(window(table[RAMP].astype(float), 6000, 3000))
    assert np.abs(shown.ravel() - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("in_bytes", [True, False])
def test_a_table_of_eight_bits_may_lie_in_bytes_or_in_words(in_bytes: bool) -> None:
    table = np.arange(256, dtype=np.uint8)[::-1]
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.LUTData = table.tobytes() if in_bytes else table.astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    pixels = smooth_image(20, 30, 2)
    result = result_of(pixels, VOILUTSequence=[item])
    assert np.array_equal(result.pixels, 255 - pixels)
    assert (result.facts.window, result.facts.window_rule) == (None, "voi lut")


def test_a_table_may_begin_below_0() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 65536 - 2048, 12], np.arange(4096, dtype=np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    shown = decoded(RAMP.astype(np.int16) - 2048, bits=16, VOILUTSequence=[item])
    assert np.abs(shown - RAMP / 4095 * 255).max() <= 0.5


def test_a_table_without_entries_is_refused() -> None:
    assert reason_for(data_of(dataset_of(RAMP, VOILUTSequence=[Dataset()]))) == EMPTY_LUT


def test_big_endian_files_are_one_picture_with_little_endian_ones() -> None:
    dataset = dataset_of(RAMP.byteswap(), syntax=ExplicitVRBigEndian)
    assert np.array_equal(pixels_of(data_of(dataset)), decoded(RAMP))


def test_a_deflated_file_is_inflated_within_a_bound() -> None:
    data = data_of(dataset_of(RAMP, syntax=DeflatedExplicitVRLittleEndian))
    assert np.array_equal(pixels_of(data), decoded(RAMP))
    assert reason_for(data[: len(data) * 2 // 3]) == TRUNCATED
    bomb = data_of(dataset_of(np.zeros((64, 64), np.uint16), syntax=DeflatedExplicitVRLittleEndian))
    stream = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = bomb.index(b"1.2.840.10008.1.2.1.99") + 22
    deflated = b"".join([stream.compress(bytes(2**20)) for _ in range(80)]) + stream.flush()
    end_of_meta = 144 + int.from_bytes(bomb[140:144], "little")
    assert end_of_meta >= start
    assert reason_for(bomb[:end_of_meta] + deflated) == TOO_LARGE


def test_compressed_pixels_without_a_transfer_syntax_are_refused() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    data = data_of(dataset).replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x12\x00UI")
    assert reason_for(data) == UNSAID_SYNTAX


def test_a_missing_transfer_syntax_is_flagged() -> None:
    data = data_of(dataset_of(RAMP)).replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x12\x00UI")
    assert decode_dicom(data, max_pixels=1e6).facts.flags == ("no transfer syntax",)


def test_other_depths_are_refused() -> None:
    assert reason_for(data_of(dataset_of(RAMP.astype(np.uint32), BitsStored=32, HighBit=31))) == BIT_DEPTH
    assert reason_for(data_of(dataset_of(RAMP, BitsAllocated=1, BitsStored=1, HighBit=0))) == BIT_DEPTH


def test_facts_are_of_the_file_and_of_a_fixed_vocabulary() -> None:
    facts = result_of(
        RAMP,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=2000.5,
        WindowWidth=1001.0,
        ImagerPixelSpacing=[0.2, 0.1],
        PixelSpacing=[0.15, 0.075],
        BurnedInAnnotation="YES",
    ).facts
    assert (facts.bits_stored, facts.photometric, facts.window) == (12, "MONOCHROME1", (1500.0, 2500.0))
    assert (facts.window_rule, facts.spacing_mm, facts.is_annotation_burned_in) == ("voi window", (0.2, 0.1), True)
    assert result_of(RAMP, BurnedInAnnotation="NO").facts.is_annotation_burned_in is False
    assert result_of(RAMP).facts.is_annotation_burned_in is None
    assert result_of(RAMP, PixelSpacing=[0.2, 0.1]).facts.spacing_mm == (0.2, 0.1)
    assert result_of(RAMP, PixelSpacing=[0.2, 0.1], PixelSpacingCalibrationType="FIDUCIAL").facts.spacing_mm is None
    assert result_of(RAMP, ImagerPixelSpacing=[0.0, 0.1]).facts.spacing_mm is None


def test_no_value_of_a_file_is_warned_of_or_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """Texts against the rules of their types, in what is read and in what is not."""
    canary = b"CANARY" * 12
    types = {
        **{(0x0008, 0x0020): "DA", (0x0010, 0x0020): "LO", (0x0010, 0x0030): "DA", (0x0010, 0x1010): "AS"},
        **{(0x0018, 0x1164): "DS", (0x0020, 0x000D): "UI", (0x0028, 0x0301): "CS", (0x0028, 0x1050): "DS"},
        **{(0x0028, 0x1051): "DS", (0x0028, 0x1052): "DS", (0x0028, 0x1053): "DS", (0x0028, 0x1056): "CS"},
    }
    dataset = dataset_of(RAMP)
    for tag in types:
        dataset.add_new(tag, "LT", canary.decode())  # a type without rules, replaced below
    data = data_of(dataset)
    for (group, element), kind in types.items():
        tag_bytes = group.to_bytes(2, "little") + element.to_bytes(2, "little")
        assert data.count(tag_bytes + b"LT") == 1
        data = data.replace(tag_bytes + b"LT", tag_bytes + kind.encode())
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    outcomes = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcomes.append(repr(decode_dicom(data, max_pixels=1e6).facts))
            outcomes += [reason_for(data[:kept]) for kept in range(300, len(data), 997)]
    finally:
        logging.getLogger().removeHandler(handler)
    captured = capfd.readouterr()
    assert not caught
    assert not records
    assert data.count(canary) == 12
    assert "CANARY" not in captured.out + captured.err + "".join(outcomes)
