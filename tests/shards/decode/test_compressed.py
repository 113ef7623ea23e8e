"""DICOM pixels in real encoders' streams: GDCM's, and pydicom's for RLE."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import compress
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from shards.decode.codestream import is_ended, read_frame
from shards.decode.reasons import DAMAGED, OTHER_DEPTH, OTHER_SIZE, TRUNCATED, UNKNOWN_SYNTAX
from tests.shards.decode.dicom_files import RAMP, compressed, data_of, dataset_of
from tests.shards.decode.files import decoded, encoded, jpeg, reason_for
from tests.support.datasets import smooth_image

LOSSLESS = (
    "JPEGLosslessProcess14",
    "JPEGLosslessProcess14_1",
    "JPEGLSLossless",
    "JPEG2000Lossless",
    "RLELossless",
    "DeflatedExplicitVRLittleEndian",
)
STREAMS = LOSSLESS[:4]
NOISE = np.random.default_rng(0).integers(0, 2**16, (40, 50)).astype(np.uint16)
COLOUR = np.stack([smooth_image(40, 50, seed) for seed in range(3)], axis=2)


def stream_of(data: bytes) -> bytes:
    return get_frame(dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)


def with_stream(data: bytes, stream: bytes, **tags: object) -> bytes:
    dataset = dcmread(io.BytesIO(data))
    dataset.PixelData = encapsulate([stream])
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def without(data: bytes, keyword: str) -> bytes:
    dataset = dcmread(io.BytesIO(data))
    delattr(dataset, keyword)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def wrapped(stream: bytes, syntax: str, photometric: str, planes: int = 0) -> bytes:
    """A DICOM file of the size and kind of `COLOUR`."""
    dataset = dataset_of(COLOUR, PhotometricInterpretation=photometric, PlanarConfiguration=planes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    return data_of(dataset)


def without_applications(stream: bytes) -> bytes:
    """A JPEG without the pieces that say what program wrote it, JFIF's and Adobe's among them."""
    kept, place = [stream[:2]], 2
    while stream[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
        kept += [stream[place:end]] if not 0xE0 <= stream[place + 1] <= 0xEF else []
        place = end
    return b"".join([*kept, stream[place:]])


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(
    "dataset",
    [
        dataset_of(RAMP),
        dataset_of(NOISE, bits=16),
        dataset_of(NOISE.view(np.int16), bits=16),
        dataset_of(RAMP.astype(np.int16) - 2048, bits=12, WindowCenter=0.0, WindowWidth=3000.0),
        dataset_of((NOISE >> 8).astype(np.uint8)),
        dataset_of(RAMP, PhotometricInterpretation="MONOCHROME1"),
        dataset_of(COLOUR, PhotometricInterpretation="RGB", PlanarConfiguration=0),
    ],
    ids=["12 bits", "16 bits", "16 signed", "12 signed", "8 bits", "inverted", "colour"],
)
def test_lossless_compression_changes_no_pixel(syntax: str, dataset: Dataset, tmp_path: Path) -> None:
    plain = data_of(dataset)
    packed = compressed(plain, syntax, tmp_path)
    assert np.array_equal(decoded(packed).pixels, decoded(plain).pixels)
    assert decoded(packed).facts.window == decoded(plain).facts.window


def test_rle_of_pydicom_changes_no_pixel() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    assert np.array_equal(decoded(data_of(dataset)).pixels, decoded(data_of(dataset_of(RAMP))).pixels)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_colour_jpeg_has_its_colours_whatever_the_header_calls_them(photometric: str, subsampling: int) -> None:
    dataset = dataset_of(COLOUR, PhotometricInterpretation=photometric, PlanarConfiguration=0)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([encoded(COLOUR, "JPEG", quality=95, subsampling=subsampling)])
    assert np.abs(decoded(data_of(dataset)).pixels.astype(int) - COLOUR).max() < 20


def test_subsampled_jpeg_called_rgb_is_luma_and_chroma(tmp_path: Path) -> None:
    """GDCM itself writes such files."""
    plain = data_of(dataset_of(COLOUR, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    packed = compressed(plain, "JPEGBaselineProcess1", tmp_path)
    assert dcmread(io.BytesIO(packed)).PhotometricInterpretation == "RGB"
    assert np.abs(decoded(packed).pixels.astype(int) - COLOUR).max() < 20


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_has_its_colours_whatever_the_header_says_of_planes(photometric: str, subsampling: int) -> None:
    """A stream has an order of its own (PS3.5 8.2); Planar Configuration speaks of pixels that nothing compressed."""
    stream = encoded(COLOUR, "JPEG", quality=95, subsampling=subsampling)
    by_pixel, by_plane = (
        decoded(wrapped(stream, JPEGBaseline8Bit, photometric, planes)).pixels.astype(int) for planes in (0, 1)
    )
    assert np.abs(by_plane - COLOUR).max() < 20
    assert np.array_equal(by_plane, by_pixel)


@pytest.mark.parametrize("planes", [0, 1])
@pytest.mark.parametrize("syntax", [*STREAMS, "RLELossless"])
def test_lossless_colour_has_its_colours_whatever_the_header_says_of_planes(
    syntax: str, planes: int, tmp_path: Path
) -> None:
    packed = compressed(
        data_of(dataset_of(COLOUR, PhotometricInterpretation="RGB", PlanarConfiguration=0)), syntax, tmp_path
    )
    lying = with_stream(packed, stream_of(packed), PlanarConfiguration=planes)
    assert np.array_equal(decoded(lying).pixels, COLOUR)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("transform", [0, 1, 7])
def test_a_jpeg_that_says_its_colour_space_is_believed(transform: int, photometric: str) -> None:
    """By Adobe's marker: 0 is RGB; 1, and any number without a meaning, are luma and chroma."""
    stream = encoded(COLOUR, "JPEG", quality=95, subsampling=0, keep_rgb=transform == 0)
    bare = without_applications(stream)
    marked = bare[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + bare[2:]
    shown = decoded(wrapped(marked, JPEGBaseline8Bit, photometric)).pixels
    assert np.abs(shown.astype(int) - COLOUR).max() < 20


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"])
def test_jpeg_2000_of_transformed_components_is_rgb(photometric: str) -> None:
    stream = encoded(COLOUR, "JPEG2000", no_jp2=True, mct=1, irreversible=False)
    assert np.array_equal(decoded(wrapped(stream, JPEG2000Lossless, photometric)).pixels, COLOUR)


def test_jpeg_2000_of_luma_and_chroma_that_nothing_transformed_is_converted() -> None:
    luma_and_chroma = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    stream = encoded(luma_and_chroma, "JPEG2000", no_jp2=True, mct=0, irreversible=False)
    shown = decoded(wrapped(stream, JPEG2000Lossless, "YBR_FULL")).pixels
    assert np.abs(shown.astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize("syntax", STREAMS)
def test_a_stream_deeper_than_its_cells_is_refused_rather_than_cut(syntax: str, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(RAMP)), syntax, tmp_path)
    lying = with_stream(packed, stream_of(packed), BitsAllocated=8, BitsStored=8, HighBit=7)
    assert reason_for(lying) == OTHER_DEPTH


@pytest.mark.parametrize("bits_stored", [8, 16])
@pytest.mark.parametrize("syntax", ["JPEGBaselineProcess1", *STREAMS])
def test_a_stream_shallower_than_its_cells_keeps_its_values(syntax: str, bits_stored: int, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))), syntax, tmp_path)
    tags = {"WindowCenter": 128.0, "WindowWidth": 256.0}
    lying = with_stream(
        packed, stream_of(packed), BitsAllocated=16, BitsStored=bits_stored, HighBit=bits_stored - 1, **tags
    )
    assert np.abs(decoded(lying).pixels[0].astype(int) - np.arange(64) * 4).max() <= 2


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_values_above_the_bits_stored_are_found_in_compressed_pixels_too(syntax: str, tmp_path: Path) -> None:
    pixels = RAMP.copy()
    pixels[5, 5] = 16000
    tags = {"WindowCenter": 8000.0, "WindowWidth": 16000.0}
    packed = compressed(data_of(dataset_of(pixels, bits=16, **tags)), syntax, tmp_path)
    lying = with_stream(packed, stream_of(packed), BitsStored=12, HighBit=11)
    result = decoded(lying)
    assert result.facts.flags == ("values above bits stored",)
    assert result.facts.bits_stored == 12
    assert np.array_equal(result.pixels, decoded(packed).pixels)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_streams_say_their_size_and_their_end(syntax: str, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(NOISE, bits=16)), syntax, tmp_path)
    stream = stream_of(packed)
    frame = read_frame(stream)
    assert (frame.height, frame.width, frame.num_components) == (40, 50, 1)
    assert (frame.precision, frame.colour_space) == (16, None)
    assert is_ended(stream + bytes(9))
    assert not is_ended(stream[:-200])
    assert reason_for(with_stream(packed, stream, Rows=20)) == OTHER_SIZE
    for kept in (0.3, 0.7, 0.98):
        assert reason_for(with_stream(packed, stream[: int(len(stream) * kept)])) == TRUNCATED
    assert reason_for(with_stream(packed, stream[:6])) == OTHER_SIZE


@pytest.mark.parametrize("file_format", ["JPEG", "JPEG2000"])
def test_a_stream_of_more_pixels_than_the_header_is_refused_before_decoding(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("decoded"))
    dataset = dataset_of(np.zeros((20, 20), np.uint8))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if file_format == "JPEG" else JPEG2000Lossless
    dataset.PixelData = encapsulate([encoded(Image.new("L", (3000, 2000)), file_format)])
    assert reason_for(data_of(dataset)) == OTHER_SIZE


@pytest.mark.parametrize("file_format", ["JPEG", "JPEG2000"])
def test_a_stream_of_more_components_than_the_header_is_refused_before_decoding(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("decoded"))
    dataset = dataset_of(np.zeros((40, 50), np.uint8))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if file_format == "JPEG" else JPEG2000Lossless
    dataset.PixelData = encapsulate([encoded(COLOUR, file_format)])
    assert reason_for(data_of(dataset)) == OTHER_SIZE


def test_runs_that_outgrow_the_image_are_refused() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    bomb = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + b"\x81\x00" * 20_000
    assert reason_for(with_stream(data_of(dataset), bomb)) == OTHER_SIZE


def test_a_truncated_file_of_compressed_pixels_is_refused(tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(NOISE, bits=16)), "JPEG2000Lossless", tmp_path)
    for kept in range(len(packed) // 2, len(packed) - 8, 301):
        assert reason_for(packed[:kept])


def test_a_jpeg_that_was_closed_before_its_picture_ends_is_damaged(tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of((NOISE >> 8).astype(np.uint8))), "JPEGBaselineProcess1", tmp_path)
    stream = stream_of(packed)
    assert decoded(with_stream(packed, stream)).pixels.shape == (40, 50)
    for kept in range(stream.index(b"\xff\xda") + 20, len(stream) - 64, 64):
        assert reason_for(with_stream(packed, stream[:kept] + b"\xff\xd9")) == DAMAGED


@pytest.mark.parametrize("syntax", STREAMS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_stream_that_was_closed_before_its_picture_ends_is_damaged(syntax: str, kept: float, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(NOISE >> 4)), syntax, tmp_path)
    stream = stream_of(packed)
    assert reason_for(with_stream(packed, stream[: int(len(stream) * kept)] + b"\xff\xd9")) == DAMAGED


@pytest.mark.parametrize("num_zeros", [40, 400, 1000])
@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_a_stream_with_zeros_inside_is_damaged(syntax: str, num_zeros: int, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(NOISE >> 4)), syntax, tmp_path)
    stream = stream_of(packed)
    half = len(stream) // 2
    zeroed = stream[:half] + bytes(num_zeros) + stream[half + num_zeros :]
    assert reason_for(with_stream(packed, zeroed)) == DAMAGED


def test_lossy_jpeg_of_eight_bits_in_the_extended_syntax_is_checked_too() -> None:
    pixels = COLOUR[..., 0]
    stream = encoded(pixels, "JPEG", quality=95)
    dataset = dataset_of(pixels)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.PixelData = encapsulate([stream])
    data = data_of(dataset)
    assert np.abs(decoded(data).pixels.astype(int) - pixels).max() < 20
    half = len(stream) - 200
    assert reason_for(with_stream(data, stream[:half] + b"\xff\xd9")) == DAMAGED
    assert reason_for(with_stream(data, stream[:half] + bytes(100) + stream[half + 100 :])) == DAMAGED


def test_a_tile_that_is_left_out_is_missed() -> None:
    """OpenJPEG shows it black, and says nothing."""
    pixels = smooth_image(96, 96, 0)
    stream = encoded(pixels, "JPEG2000", no_jp2=True, irreversible=False, tile_size=(32, 32))
    dataset = dataset_of(pixels)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([stream])
    data = data_of(dataset)
    assert np.array_equal(decoded(data).pixels, pixels)
    last = stream.rindex(b"\xff\x90\0\x0a\0\x08")
    assert reason_for(with_stream(data, stream[:last] + b"\xff\xd9")) == TRUNCATED


def test_a_component_whose_scan_is_left_out_is_missed() -> None:
    """libjpeg makes a picture of the others."""
    stream = jpeg([(1, 1)] * 3, are_scans_apart=True)
    cut = stream[: stream.rindex(b"\xff\xda")] + b"\xff\xd9"
    height, width = decoded(stream).pixels.shape[:2]
    dataset = dataset_of(np.zeros((height, width, 3), np.uint8), PhotometricInterpretation="YBR_FULL")
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([stream])
    data = data_of(dataset)
    assert np.abs(decoded(data).pixels.astype(int) - decoded(stream).pixels).max() <= 2
    assert reason_for(with_stream(data, cut)) == TRUNCATED
    assert reason_for(cut) == DAMAGED


@pytest.mark.parametrize("syntax", [*STREAMS, "RLELossless"])
def test_a_file_without_the_delimiter_behind_its_pixels_is_whole(syntax: str, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(NOISE, bits=16)), syntax, tmp_path)
    end = packed.rindex(b"\xfe\xff\xdd\xe0")
    assert end == len(packed) - 8
    assert np.array_equal(decoded(packed[:end]).pixels, decoded(packed).pixels)
    assert reason_for(packed[: end - 300]) in (DAMAGED, TRUNCATED)


@pytest.mark.parametrize("num_zeros", [2, 200, 5000])
@pytest.mark.parametrize("syntax", ["JPEGBaselineProcess1", *STREAMS])
def test_zeros_behind_the_end_of_a_stream_do_no_harm(syntax: str, num_zeros: int, tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of((RAMP >> 4).astype(np.uint8))), syntax, tmp_path)
    padded = with_stream(packed, stream_of(packed) + bytes(num_zeros))
    assert np.array_equal(decoded(padded).pixels, decoded(packed).pixels)


def test_an_odd_header_of_a_stream_does_no_harm() -> None:
    stream = encoded(COLOUR, "JPEG", quality=95)
    version = stream.index(b"JFIF\0") + 5
    odd = stream[:version] + b"\0\0" + stream[version + 2 :]
    tables = odd.index(b"\xff\xdb")
    odd = odd[:tables] + bytes(2) + odd[tables:]
    plain = decoded(wrapped(stream, JPEGBaseline8Bit, "YBR_FULL_422"))
    assert np.array_equal(decoded(wrapped(odd, JPEGBaseline8Bit, "YBR_FULL_422")).pixels, plain.pixels)


@pytest.mark.parametrize("syntax", [None, *STREAMS, "RLELossless"])
@pytest.mark.parametrize("keyword", ["SamplesPerPixel", "BitsStored", "HighBit", "PixelRepresentation"])
def test_missing_elements_take_their_defaults_with_a_flag(keyword: str, syntax: str | None, tmp_path: Path) -> None:
    data = data_of(dataset_of(RAMP))
    data = data if syntax is None else compressed(data, syntax, tmp_path)
    result = decoded(without(data, keyword))
    assert np.array_equal(result.pixels, decoded(data).pixels)
    assert result.facts.bits_stored == 12
    assert result.facts.flags == ("elements of the pixels missing, their defaults taken",)


@pytest.mark.parametrize("syntax", [None, "JPEGBaselineProcess1", *STREAMS, "RLELossless"])
def test_colour_without_its_planar_configuration_is_colour_by_pixel(syntax: str | None, tmp_path: Path) -> None:
    data = data_of(dataset_of(COLOUR, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    data = data if syntax is None else compressed(data, syntax, tmp_path)
    assert np.array_equal(decoded(without(data, "PlanarConfiguration")).pixels, decoded(data).pixels)


def test_a_missing_decoder_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compressed(data_of(dataset_of(RAMP)), "JPEGLSLossless", tmp_path)
    monkeypatch.setattr(Decoder, "is_available", False)
    assert reason_for(packed) == (
        "DICOM pixels compressed as JPEG-LS Lossless Image Compression, which no installed decoder reads: "
        "pip install 'ace-pretraining[dicom]'"
    )


def test_a_syntax_that_nothing_reads_promises_no_remedy() -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    reason = reason_for(data_of(dataset))
    assert reason.startswith("DICOM pixels compressed as MPEG2")
    assert reason.endswith("which no installed decoder reads")
    unknown = data_of(dataset).replace(b"1.2.840.10008.1.2.4.100", b"1.2.840.10008.1.2.9.999")
    assert reason_for(unknown) == UNKNOWN_SYNTAX


def test_lossy_jpeg_of_twelve_bits_is_refused_rather_than_misread(tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(RAMP)), "JPEGExtendedProcess2_4", tmp_path)
    assert reason_for(packed).startswith("DICOM pixels compressed as JPEG Extended (Process 2 and 4)")
