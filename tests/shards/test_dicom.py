"""DICOM files written with pydicom, read as a viewer would show them."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import compress
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from shards.canvas import DAMAGED, TOO_LARGE, UnreadableImageError
from shards.dicom import (
    COLOUR_SPACE,
    COMPRESSED,
    DEFLATED,
    MULTI_FRAME,
    NO_PIXELS,
    NOT_DICOM,
    decode_dicom,
    is_dicom,
)
from tests.shards.datasets import smooth_image

REASONS = (DAMAGED, TOO_LARGE, NOT_DICOM, NO_PIXELS, MULTI_FRAME, DEFLATED, COMPRESSED, COLOUR_SPACE)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
"""Every 12-bit value once."""


def dataset_of(pixels: np.ndarray, *, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = "Doe^Jane"
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 and pixels.shape[2] == 3 else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits if dataset.BitsAllocated == 16 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def data_of(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def decoded(pixels: np.ndarray, **tags: Any) -> np.ndarray:
    return decode_dicom(data_of(dataset_of(pixels, **tags)), 1e6)


def reason_for(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode_dicom(data, max_pixels)
    assert str(error.value) in REASONS
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


def test_twelve_bits_without_a_window_fill_the_range() -> None:
    assert np.abs(decoded(RAMP) - RAMP / 4095 * 255).max() <= 0.5
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


def test_colour_stays_colour() -> None:
    pixels = np.stack([smooth_image(20, 30, seed) for seed in range(3)], axis=2)
    assert np.array_equal(decoded(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=0), pixels)
    planes = dataset_of(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=1)
    planes.PixelData = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)).tobytes()
    assert np.array_equal(decode_dicom(data_of(planes), 1e6), pixels)


def test_lossless_compression_changes_nothing() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    assert np.array_equal(decode_dicom(data_of(dataset), 1e6), decoded(RAMP))


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
    assert np.array_equal(decode_dicom(data, 1e6), decoded(RAMP))


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


def test_a_deflated_file_is_refused_before_it_is_inflated() -> None:
    assert reason_for(data_of(dataset_of(RAMP, syntax=DeflatedExplicitVRLittleEndian))) == DEFLATED


def test_a_report_has_no_image() -> None:
    dataset = dataset_of(RAMP)
    del dataset.PixelData
    assert reason_for(data_of(dataset)) == NO_PIXELS


def test_unknown_colours_are_refused() -> None:
    assert reason_for(data_of(dataset_of(RAMP, PhotometricInterpretation="PALETTE COLOR"))) == COLOUR_SPACE


def test_an_unknown_compression_is_named_as_the_reason() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    assert reason_for(data_of(dataset)) == COMPRESSED


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_damaged(kept: float) -> None:
    data = data_of(dataset_of(RAMP))
    assert reason_for(data[: int(len(data) * kept)]) in (DAMAGED, NO_PIXELS)


@given(st.binary(min_size=1, max_size=30), st.integers(132, 900))
def test_any_damage_gives_pixels_or_a_fixed_reason(junk: bytes, place: int) -> None:
    data = data_of(dataset_of(RAMP, WindowCenter="2000", WindowWidth="700"))
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        outcome = decode_dicom(damaged, 1e6).dtype.name
    except UnreadableImageError as error:
        outcome = str(error)
    assert outcome in ("uint8", *REASONS)
