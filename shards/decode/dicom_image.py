"""Decode a DICOM file's bytes to 8-bit pixels as a viewer would show them."""

import math
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from shards.decode.codestream import Frame, has_every_part, is_ended, read_frame, without_oddities
from shards.decode.dicom import (
    count_of,
    is_burned_in,
    items_of,
    number_of,
    numbers_of,
    parse,
    reporting_nothing,
    spacing_of,
    text_of,
)
from shards.decode.display import Function, Look, Lookup, VoiWindow, show
from shards.decode.grey import histogram
from shards.decode.isolated import Pixels, decode_isolated
from shards.decode.raster import decode_sound_jpeg
from shards.decode.reasons import (
    BIT_DEPTH,
    COLOUR_SPACE,
    DAMAGED,
    EMPTY_LUT,
    MULTI_FRAME,
    NO_PIXEL_DATA,
    NO_PIXELS,
    NOT_DICOM,
    OTHER_DEPTH,
    OTHER_SIZE,
    TRUNCATED,
    UNKNOWN_SYNTAX,
    UNSAID_SYNTAX,
    TooLargeError,
    UnreadableImageError,
)
from shards.decode.result import (
    MISSING_ELEMENTS,
    NO_TRANSFER_SYNTAX,
    ODD_PADDING,
    ODD_RESCALE,
    ODD_TABLE,
    ODD_WINDOW,
    SURPLUS_DATA,
    VALUES_ABOVE_BITS,
    Decoded,
    Facts,
)
from shards.decode.signature import is_dicom

_OVERLAY_BIT_POSITIONS = tuple((group, 0x0102) for group in range(0x6000, 0x6020, 2))
_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "BurnedInAnnotation",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
    "PixelData",
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FUNCTIONS: dict[str, Function] = {"LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
# pydicom would return surplus data as frames, and cut values to the bits stored without a word.
_AS_THEY_ARE: dict[str, Any] = {"allow_excess_frames": False, "correct_unused_bits": False}
_IN_THE_EXTRA = (
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
)
"""Transfer syntaxes that the extra `dicom` reads."""
_MAX_BYTES_PER_PIXEL = 3
_MAX_OTHER_BYTES = 64 * 2**20


def decode_dicom(data: bytes, *, max_pixels: float) -> Decoded:
    """Decode the image of a DICOM file to 8 bits: black is dark and white is bright, as on a viewer.

    Stored values pass the modality LUT (or slope and intercept), then the first VOI LUT or window (DICOM PS3.3 C.11.1
    and C.11.2); without one, `grey.choose_window` sees to them, but 8-bit values stay as they are. MONOCHROME1 is
    inverted once, whatever the Presentation LUT Shape, which says the same again. Padding is black. Values above the
    bits stored are shown as what they are, and flagged. Colour is RGB.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    if not is_dicom(data):
        raise UnreadableImageError(NOT_DICOM)
    with reporting_nothing():
        dataset = parse(
            data, (*_TAGS, *_OVERLAY_BIT_POSITIONS), max_bytes=_MAX_BYTES_PER_PIXEL * max_pixels + _MAX_OTHER_BYTES
        )
        is_syntax_said = "TransferSyntaxUID" in dataset.file_meta
        if is_syntax_said:
            _check_decoder(dataset.file_meta.TransferSyntaxUID)
        layout = _layout(dataset, max_pixels)
        flags = []
        if not is_syntax_said:
            dataset.file_meta.TransferSyntaxUID = _plain_syntax(dataset)
            flags.append(NO_TRANSFER_SYNTAX)
        if _fill_in(dataset, layout):
            flags.append(MISSING_ELEMENTS)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax == RLELossless:
            _check_runs(dataset, layout)
        elif not syntax.is_compressed and _has_surplus(dataset, layout):
            flags.append(SURPLUS_DATA)
        facts = Facts(
            bits_stored=layout.bits_stored,
            photometric=layout.photometric,
            window=(0.0, 255.0),
            spacing_mm=spacing_of(dataset),
            is_annotation_burned_in=is_burned_in(dataset),
            flags=tuple(flags),
        )
        stored = _stored(dataset, layout)
        return Decoded(np.array(stored), facts) if stored.ndim == 3 else _grey(stored, dataset, layout, facts)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The layout of stored pixels (PS3.3 C.7.6.3), checked."""

    height: int
    width: int
    num_samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the image, not compressed; every second chroma sample is left out of YBR_FULL_422."""
        num_values = self.height * self.width * (2 if self.photometric == "YBR_FULL_422" else self.num_samples)
        return num_values * self.bits_allocated // 8


def _layout(dataset: Dataset, max_pixels: float) -> _Layout:
    height, width = count_of(dataset, "Rows"), count_of(dataset, "Columns")
    if height is None or width is None:
        raise UnreadableImageError(NO_PIXELS)
    if (number_of(dataset, "NumberOfFrames") or 1) > 1:
        raise UnreadableImageError(MULTI_FRAME)
    if height * width > max_pixels:
        raise TooLargeError(height * width, max_pixels)
    if "PixelData" not in dataset:
        raise UnreadableImageError(NO_PIXEL_DATA)
    photometric = text_of(dataset, "PhotometricInterpretation") or ""
    num_samples = count_of(dataset, "SamplesPerPixel") or (1 if photometric in _GREY else 3)
    allocated = count_of(dataset, "BitsAllocated") or 0
    if photometric not in (_GREY if num_samples == 1 else _COLOUR if num_samples == 3 else ()):
        raise UnreadableImageError(COLOUR_SPACE)
    if num_samples == 3 and allocated != 8:
        raise UnreadableImageError(COLOUR_SPACE)
    if allocated not in (8, 16):
        raise UnreadableImageError(BIT_DEPTH)
    high_bit = number_of(dataset, "HighBit")
    stored = count_of(dataset, "BitsStored") or (allocated if high_bit is None else int(high_bit) + 1)
    high = stored - 1 if high_bit is None else int(high_bit)
    if not stored - 1 <= high < allocated:
        raise UnreadableImageError(DAMAGED)
    is_signed = number_of(dataset, "PixelRepresentation") == 1
    return _Layout(
        height=height,
        width=width,
        num_samples=num_samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        is_signed=is_signed,
        photometric=photometric,
    )


def _fill_in(dataset: FileDataset, layout: _Layout) -> bool:
    """Write the layout's values where the header says nothing, and tell whether there was such an element."""
    values = {
        "SamplesPerPixel": layout.num_samples,
        "BitsStored": layout.bits_stored,
        "HighBit": layout.high_bit,
        "PixelRepresentation": int(layout.is_signed),
    }
    if layout.num_samples > 1 and not _is_stream(dataset.file_meta.TransferSyntaxUID):
        values["PlanarConfiguration"] = 0
    missing = [keyword for keyword in values if number_of(dataset, keyword) is None]
    for keyword in missing:
        setattr(dataset, keyword, values[keyword])
    return bool(missing)


def _plain_syntax(dataset: FileDataset) -> UID:
    """Return the transfer syntax of a file that names none: pydicom has found out how its elements are written."""
    if dataset["PixelData"].is_undefined_length:
        raise UnreadableImageError(UNSAID_SYNTAX)
    is_implicit, is_little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    return ImplicitVRLittleEndian if is_implicit else explicit


@dataclass(frozen=True)
class _Stream:
    """A codec's stream and what it says of itself, checked against the header."""

    data: bytes
    frame: Frame

    @property
    def is_lossy_jpeg(self) -> bool:
        return self.frame.codec == "JPEG"


def _has_surplus(dataset: FileDataset, layout: _Layout) -> bool:
    """Tell whether there are more data, not compressed, than the header speaks of.

    Raises:
        UnreadableImageError: there are fewer.
    """
    if len(dataset.PixelData) < layout.num_bytes:
        raise UnreadableImageError(TRUNCATED)
    return len(dataset.PixelData) > layout.num_bytes + layout.num_bytes % 2


def _check_runs(dataset: FileDataset, layout: _Layout) -> None:
    """Refuse RLE that outgrows the image."""
    # A run of two bytes becomes 128; runs never make an honest file larger than a header and a byte in 128.
    if len(get_frame(dataset.PixelData, 0, number_of_frames=1)) > 2 * layout.num_bytes + 1024:
        raise UnreadableImageError(OTHER_SIZE)


def _stream(dataset: FileDataset, layout: _Layout) -> _Stream:
    """Return the compressed stream of an image.

    It is refused before decoding if it is damaged or of another size or depth than the header says.
    """
    data = get_frame(dataset.PixelData, 0, number_of_frames=1)
    frame = read_frame(data)
    said = layout.height, layout.width, layout.num_samples
    if frame is None or (frame.height, frame.width, frame.num_components) != said:
        raise UnreadableImageError(OTHER_SIZE)
    if frame.precision > layout.bits_allocated:
        raise UnreadableImageError(OTHER_DEPTH)
    if not is_ended(data) or not has_every_part(data):
        raise UnreadableImageError(TRUNCATED)
    stream = _Stream(without_oddities(data), frame)
    if stream.is_lossy_jpeg:
        if frame.precision > 8:  # which GDCM and Pillow take for 8
            raise UnreadableImageError(_unread(JPEGExtended12Bit))
        # GDCM would pass over a few bytes too many, as it should here, and over damage as well.
        decode_sound_jpeg(stream.data, "GRAY")
    return stream


def _check_decoder(syntax: UID) -> None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:  # pydicom does not know the syntax
        raise UnreadableImageError(_unread(syntax)) from None
    if not decoder.is_available:
        remedy = ": pip install 'ace-pretraining[dicom]'" if syntax in _IN_THE_EXTRA else ""
        raise UnreadableImageError(_unread(syntax) + remedy)


def _is_stream(syntax: UID) -> bool:
    """Tell whether pixels are a codec's stream rather than cells, packed or not."""
    return syntax.is_compressed and syntax != RLELossless


def _unread(syntax: UID) -> str:
    """Name what is not read, in the standard's words, never the file's text."""
    if syntax.name == str(syntax):
        return UNKNOWN_SYNTAX
    return f"DICOM pixels compressed as {syntax.name}, which no installed decoder reads"


def _stored(dataset: FileDataset, layout: _Layout) -> Pixels:
    """Return the stored values: grey in its cells, colour as RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not _is_stream(syntax):
        pixels: Pixels = get_decoder(syntax).as_array(dataset, **_AS_THEY_ARE)[0]
        return pixels
    stream = _stream(dataset, layout)
    # Where the stream knows better than the header, decoders are told what it says (PS3.5 8.2).
    options = {
        **_AS_THEY_ARE,
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
        "rows": layout.height,
        "columns": layout.width,
        "samples_per_pixel": layout.num_samples,
        "bits_allocated": 8 if stream.frame.precision <= 8 else 16,
        "bits_stored": stream.frame.precision,
        "pixel_representation": int(layout.is_signed),
        "photometric_interpretation": stream.frame.colour_space or layout.photometric,
        "planar_configuration": 0,
    }
    return decode_isolated(syntax, encapsulate([stream.data]), options, is_checked=stream.is_lossy_jpeg)


def _grey(stored: Shaped[np.ndarray, "height width"], dataset: FileDataset, layout: _Layout, facts: Facts) -> Decoded:
    if stored.dtype.kind not in "iu" or stored.itemsize > 2:
        raise UnreadableImageError(BIT_DEPTH)
    cells = stored.astype(stored.dtype.newbyteorder("="), copy=False).view(f"u{stored.itemsize}")
    counts = histogram(cells)
    values, is_outside = _values_of_cells(8 * stored.itemsize, layout, dataset)
    look, flags = _look(dataset, layout)
    is_padding = _is_padding(values, dataset, layout)
    if (is_padding | (counts == 0)).all():
        is_padding = np.zeros_like(is_padding)
        flags.append(ODD_PADDING)
    if (is_outside & (counts > 0)).any():
        flags.append(VALUES_ABOVE_BITS)
    shown = show(values, counts, is_padding, look)
    facts = replace(facts, window=shown.window, window_rule=shown.rule, flags=(*facts.flags, *flags))
    return Decoded(np.take(shown.levels, cells), facts)


def _values_of_cells(
    bits: int, layout: _Layout, dataset: FileDataset
) -> tuple[Int[np.ndarray, " num_cells"], Bool[np.ndarray, " num_cells"]]:
    """Return the value of every bit pattern of a cell, and whether it is outside of the bits stored.

    Signed values may fill the bits above with zeros or with their sign. Whatever else stands there is part of the
    value, unless the file says that it keeps an overlay in these bits.
    """
    cells = np.arange(1 << bits)
    shift = 0 if _is_stream(dataset.file_meta.TransferSyntaxUID) else layout.high_bit + 1 - layout.bits_stored
    cells >>= shift
    span = 1 << layout.bits_stored
    low = cells % span
    extended = np.where(low >= span // 2, low - span, low) if layout.is_signed else low
    whole = np.where(cells >= 1 << (bits - 1), cells - (1 << bits), cells) if layout.is_signed else cells
    is_outside = (cells != low) & (whole != extended)
    if any(number_of(dataset, position) for position in _OVERLAY_BIT_POSITIONS):
        return extended, np.zeros_like(is_outside)
    return np.where(is_outside, whole, extended), is_outside


def _is_padding(
    values: Int[np.ndarray, " num_cells"], dataset: Dataset, layout: _Layout
) -> Bool[np.ndarray, " num_cells"]:
    """Tell which values Pixel Padding Value, or the range from it to its limit, declares to be no measurement."""
    padding = number_of(dataset, "PixelPaddingValue")
    if padding is None:
        return np.zeros(len(values), bool)
    limit = number_of(dataset, "PixelPaddingRangeLimit")
    # Written with the wrong sign as often as not.
    ends = [_with_sign(int(end), layout) for end in (padding, padding if limit is None else limit)]
    return (values >= min(ends)) & (values <= max(ends))


def _with_sign(value: int, layout: _Layout) -> int:
    span = 1 << layout.bits_allocated
    if layout.is_signed and value >= span // 2:
        return value - span
    return value + span if value < 0 and not layout.is_signed else value


def _look(dataset: FileDataset, layout: _Layout) -> tuple[Look, list[str]]:
    """Read how a file wants its grey values seen, and yield a flag for each element that made no sense."""
    modality, is_modality_odd = _lookup(dataset, "ModalityLUTSequence", is_signed=layout.is_signed)
    slope, intercept, is_rescale_odd = _rescale(dataset)
    is_voi_signed = layout.is_signed or (modality is None and intercept < 0)
    table, is_table_odd = _lookup(dataset, "VOILUTSequence", is_signed=is_voi_signed)
    window, is_window_odd = _voi_window(dataset)
    oddities = {
        ODD_RESCALE: is_rescale_odd and modality is None,
        ODD_TABLE: is_modality_odd or is_table_odd,
        ODD_WINDOW: is_window_odd and table is None,
    }
    look = Look(
        modality=modality or (slope, intercept),
        voi=table or window,
        is_eight_bit=layout.bits_stored == 8,
        is_inverted=layout.photometric == "MONOCHROME1",
    )
    return look, [flag for flag, is_odd in oddities.items() if is_odd]


def _rescale(dataset: FileDataset) -> tuple[float, float, bool]:
    """Return slope and intercept, and whether they are not as the file has them.

    A slope of 0 is an anonymizer's or a converter's, and would make every picture one grey.
    """
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    if slope == 0:
        return 1.0, 0.0, True
    found = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if not all(math.isfinite(number) for number in found):
        raise UnreadableImageError(DAMAGED)
    return *found, (slope is None) != (intercept is None)


def _lookup(dataset: FileDataset, keyword: str, *, is_signed: bool) -> tuple[Lookup | None, bool]:
    """Return the first table of a sequence (C.11.1.1, C.11.2.1.1), and whether its entries exceed their stated bits."""
    items = dataset.get(keyword)
    if not items:
        return None, False
    descriptor, data = numbers_of(items[0], "LUTDescriptor"), items[0].get("LUTData")
    if len(descriptor) != 3:
        raise UnreadableImageError(EMPTY_LUT)
    num_entries, first, bits = int(descriptor[0]) % 2**16 or 2**16, int(descriptor[1]), int(descriptor[2])
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        # Entries of 8 bits may lie in bytes, or in words.
        is_bytes = bits <= 8 and len(data) < 2 * num_entries
        data = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2") if not is_bytes else np.frombuffer(data, "u1")
    entries = np.atleast_1d(np.asarray([] if data is None else data)).astype(np.int64)[:num_entries]
    if not len(entries) or not 1 <= bits <= 16:
        raise UnreadableImageError(EMPTY_LUT)
    needed = max(bits, int(entries.max()).bit_length())
    return Lookup(first - 2**16 if is_signed and first >= 2**15 else first, entries, needed), needed > bits


def _voi_window(dataset: Dataset) -> tuple[VoiWindow | None, bool]:
    """Return the first window of interest that is possible, and whether any before it is not."""
    function = _FUNCTIONS.get(text_of(dataset, "VOILUTFunction") or "", "LINEAR")
    is_odd = False
    for center, width in zip_longest(items_of(dataset, "WindowCenter"), items_of(dataset, "WindowWidth")):
        if center is not None and width is not None:
            window = VoiWindow(center, width, function)
            if window.is_one:
                return window, is_odd
        is_odd = is_odd or center is not None or width is not None
    return None, is_odd
