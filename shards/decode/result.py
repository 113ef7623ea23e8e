"""Define the result of decoding: pixels, and the few facts about a file that may leave it."""

from dataclasses import dataclass

from shards.core.canvas import Pixels

AS_STORED = "as stored"
VOI_WINDOW = "voi window"
VOI_LUT = "voi lut"
VOI_SIGMOID = "voi sigmoid"
PERCENTILES = "percentiles"
MIN_TO_MAX = "minimum to maximum"

VALUES_ABOVE_BITS = "values above bits stored"
VALUES_ABOVE_MAXIMUM = "values above the maximum"
SURPLUS_DATA = "more pixel data than the header says"
NO_TRANSFER_SYNTAX = "no transfer syntax"
ODD_RESCALE = "a rescale slope of 0, passed over, or half a rescale, the other half taken at its default"
ODD_WINDOW = "a window of no width or half a window, passed over"
ODD_TABLE = "a table with entries above its bits, which were raised"
ODD_PADDING = "padding that is the whole picture, passed over"
MISSING_ELEMENTS = "elements of the pixels missing, their defaults taken"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a decoded file: every text is one of a fixed vocabulary, none is the file's own.

    Attributes:
        bits_stored: Bits of a sample; None if unknown.
        photometric: DICOM's word for the original's grey or colour; None for other files.
        window: The values that became 0 and 255, before any inversion; None where a table or a curve did it.
        window_rule: Rule by which they were chosen, one of this module's.
        spacing_mm: (row, col) side of a pixel at the detector; None if unknown.
        is_annotation_burned_in: The file says that text is in its pixels; None if it says nothing.
        flags: Oddities, of this module's.
    """

    bits_stored: int | None
    photometric: str | None = None
    window: tuple[float, float] | None = None
    window_rule: str = AS_STORED
    spacing_mm: tuple[float, float] | None = None
    is_annotation_burned_in: bool | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """An image in 8 bits.

    Attributes:
        pixels: Grey or RGB, upright, black is dark. Perhaps read-only: one copy more takes as long as a third of
            decoding.
        facts: About the file.
    """

    pixels: Pixels
    facts: Facts
