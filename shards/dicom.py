"""From a DICOM file's bytes to 8-bit pixels as a viewer would show them; no message holds a value of the file."""

import io
import math
import re
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from shards.canvas import DAMAGED, TOO_LARGE, Pixels, UnreadableImageError, full_range

NOT_DICOM = "no DICOM file"
NO_PIXELS = "a DICOM file without an image"
MULTI_FRAME = "a DICOM file of several frames"
DEFLATED = "a deflated DICOM file"
COMPRESSED = "DICOM pixels compressed in a way that no installed decoder reads"
COLOUR_SPACE = "DICOM colours of a kind that is not read (MONOCHROME1 and 2, RGB and YBR in 8 bits are)"

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
# Files without a preamble begin with the group of their file meta information or with the identifying group.
_FIRST_ELEMENT = re.compile(
    rb"\x02\x00[\x00-\x16]\x00(UL|OB|UI)|\x08\x00[\x00-\x18]\x00([A-Z]{2}|.\x00\x00\x00)", re.DOTALL
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_MAX_GREY = 255


def is_dicom(data: bytes) -> bool:
    """Whether the file says that it is DICOM: by its preamble, or by a first element that nothing else begins with."""
    return data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == _MAGIC or _FIRST_ELEMENT.match(data) is not None


def decode_dicom(data: bytes, max_pixels: float) -> Pixels:
    """The image of a DICOM file in 8 bits: black is dark and white is bright, as on a viewer.

    Stored values pass the modality LUT (or slope and intercept), then the first VOI LUT or window (DICOM PS3.3 C.11.1
    and C.11.2); without one their own minimum..maximum becomes 0..255, but 8-bit values stay as they are. MONOCHROME1
    is inverted once, whatever the Presentation LUT Shape, which says the same again. Colour is RGB.

    Raises:
        UnreadableImageError: with the reason for quarantine, one of this module's or of `shards.canvas`.
    """
    if not is_dicom(data):
        raise UnreadableImageError(NOT_DICOM)
    # pydicom inflates the whole file before its header can be read, so no bound could be kept.
    if DeflatedExplicitVRLittleEndian.encode() in data:
        raise UnreadableImageError(DEFLATED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks quote values
            dataset = dcmread(io.BytesIO(data), force=True)
            _check(dataset, max_pixels)
            return _shown(dataset)
    except UnreadableImageError:
        raise
    # Whatever pydicom and its decoders raise on a damaged file: its text may hold values, so it goes no further.
    except Exception:
        raise UnreadableImageError(DAMAGED) from None


def _check(dataset: FileDataset, max_pixels: float) -> None:
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImageError(NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableImageError(MULTI_FRAME)
    if int(dataset.Rows) * int(dataset.Columns) > max_pixels:
        raise UnreadableImageError(TOO_LARGE)
    is_colour = dataset.PhotometricInterpretation in _COLOUR
    if not (is_colour or dataset.PhotometricInterpretation in _GREY) or (is_colour and dataset.BitsAllocated != 8):
        raise UnreadableImageError(COLOUR_SPACE)
    if "TransferSyntaxUID" not in dataset.file_meta:
        if dataset["PixelData"].is_undefined_length:  # compressed, and nothing says how
            raise UnreadableImageError(COMPRESSED)
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    if not _has_decoder(dataset.file_meta.TransferSyntaxUID):
        raise UnreadableImageError(COMPRESSED)


def _has_decoder(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # pydicom does not know the syntax
        return False


def _shown(dataset: Dataset) -> Pixels:
    stored = pixel_array(dataset)
    if stored.ndim == 3:
        colours: Pixels = np.ascontiguousarray(stored)
        return colours
    grey = _in_eight_bits(stored, dataset)
    return _MAX_GREY - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _in_eight_bits(stored: np.ndarray, dataset: Dataset) -> Pixels:
    values = apply_modality_lut(stored, dataset).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImageError(DAMAGED)
    share = _through_voi(values, dataset)
    if share is not None:
        return np.round(share * _MAX_GREY).astype(np.uint8)
    is_eight_bit = dataset.BitsStored == 8 and stored.min() >= 0 and stored.max() <= _MAX_GREY
    return stored.astype(np.uint8) if is_eight_bit and np.array_equal(stored, values) else full_range(values)


def _through_voi(
    values: Float[np.ndarray, "height width"], dataset: Dataset
) -> Float[np.ndarray, "height width"] | None:
    """Values of interest as a share of the display's range; None if the file names none."""
    if dataset.get("VOILUTSequence"):
        return _through_lut(values, dataset.VOILUTSequence[0], dataset)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None or width is None or not (math.isfinite(center) and 0 < width < math.inf):
        return None
    return _through_window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))


def _through_window(
    values: Float[np.ndarray, "height width"], center: float, width: float, function: str
) -> Float[np.ndarray, "height width"]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0..1."""
    match function:
        case "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
        case "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0, 1)
        case _ if width > 1:
            return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
        case _:  # a width of 1 is a threshold
            return (values > center - 0.5).astype(np.float64)


def _through_lut(
    values: Float[np.ndarray, "height width"], item: Dataset, dataset: Dataset
) -> Float[np.ndarray, "height width"]:
    """PS3.3 C.11.2.1.1, onto 0..1; values outside of the table take its ends."""
    num_entries, first, bits = (int(value) for value in item.LUTDescriptor)
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, f"{order}u2")
    entries = np.asarray(table, np.float64)[: num_entries or 2**16]
    places = np.clip(np.round(values) - first, 0, len(entries) - 1).astype(np.int64)
    shown: Float[np.ndarray, "height width"] = np.clip(entries[places] / (2**bits - 1), 0, 1)
    return shown


def _first(value: Any) -> float | None:
    """The first of a value or of several; None if there is none."""
    values = [value] if isinstance(value, str | float | int) else list(value or [])
    return float(values[0]) if values and values[0] != "" else None
