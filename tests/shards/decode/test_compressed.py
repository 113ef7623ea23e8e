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
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from shards.decode.codestream import is_ended, read_frame
from shards.decode.reasons import DAMAGED, OTHER_SIZE, TRUNCATED
from tests.shards.datasets import smooth_image
from tests.shards.decode.dicom_files import RAMP, compressed, data_of, dataset_of
from tests.shards.decode.files import decoded, encoded, reason_for

LOSSLESS = (
    "JPEGLosslessProcess14",
    "JPEGLosslessProcess14_1",
    "JPEGLSLossless",
    "JPEG2000Lossless",
    "RLELossless",
    "DeflatedExplicitVRLittleEndian",
)
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
    assert (frame.precision, frame.is_subsampled) == (16, False)
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
    assert reason_for(unknown) == "DICOM pixels compressed in an unknown way, which no installed decoder reads"


def test_lossy_jpeg_of_twelve_bits_is_refused_rather_than_misread(tmp_path: Path) -> None:
    packed = compressed(data_of(dataset_of(RAMP)), "JPEGExtendedProcess2_4", tmp_path)
    assert reason_for(packed).startswith("DICOM pixels compressed as JPEG Extended (Process 2 and 4)")
