"""Turn stored values into grey levels as DICOM asks (PS3.3 C.11.1 and C.11.2), a value at a time, not a pixel."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from shards.decode.grey import WHITE, choose_window, in_eight_bits
from shards.decode.result import AS_STORED, VOI_LUT, VOI_SIGMOID, VOI_WINDOW

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Lookup:
    """A table of a DICOM file.

    Attributes:
        first: The value that the first entry is for; lower ones take it too, and values beyond the last entry the last.
        entries: Values of the table, from that of `first` on.
        bits: Bits of an entry.
    """

    first: int
    entries: Int[np.ndarray, " num_entries"]
    bits: int

    def __call__(self, values: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
        """Look values up in the table."""
        positions = np.clip(np.round(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        found: Float[np.ndarray, " num"] = self.entries[positions].astype(np.float64)
        return found


@dataclass(frozen=True)
class VoiWindow:
    """A window of interest (C.11.2.1.2 and C.11.2.1.3).

    Attributes:
        center: Middle of the window, in values after the modality's transformation.
        width: Width of the window, in the same values.
        function: The curve between its ends.
    """

    center: float
    width: float
    function: Function

    @property
    def is_one(self) -> bool:
        """The window is possible: a linear one is at least 1 wide, the others more than 0."""
        is_wide = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        return is_wide and math.isfinite(self.center) and math.isfinite(self.width)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The values that become black and white; a sigmoid never reaches them."""
        match self.function:
            case "LINEAR":
                middle, half = self.center - 0.5, (self.width - 1) / 2
                return middle - half, middle + half
            case "LINEAR_EXACT":
                return self.center - self.width / 2, self.center + self.width / 2
            case "SIGMOID":
                return None

    def __call__(self, values: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
        """Convert values to shares of the display's range."""
        match self.function:
            case "SIGMOID":
                return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -500, 500)))
            case "LINEAR_EXACT":
                return np.clip((values - self.center) / self.width + 0.5, 0, 1)
            case "LINEAR" if self.width > 1:
                return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)
            case "LINEAR":  # a width of 1 is a threshold
                return (values > self.center - 0.5).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The way in which a file wants its grey values seen.

    Attributes:
        modality: Table of the modality, or slope and intercept.
        voi: Table or window of interest; None if there is none.
        is_eight_bit: Values that nothing transforms are grey levels already.
        is_inverted: Low values are bright.
    """

    modality: Lookup | tuple[float, float]
    voi: Lookup | VoiWindow | None
    is_eight_bit: bool
    is_inverted: bool


@dataclass(frozen=True)
class GreyLevels:
    """Holds the grey levels of stored values, and what made them: `Facts.window` and `Facts.window_rule`."""

    levels: UInt8[np.ndarray, " num"]
    window: tuple[float, float] | None
    rule: str


def show(
    stored: Int[np.ndarray, " num"], counts: Int[np.ndarray, " num"], is_padding: Bool[np.ndarray, " num"], look: Look
) -> GreyLevels:
    """Convert stored values to grey levels: modality, interest, inversion, in this order; padding is black after all.

    Without a window of interest, 8-bit values stay as they are and others go through `grey.choose_window`, padding
    left out.

    Args:
        stored: The values that a pixel could have.
        counts: Number of pixels that have each value.
        is_padding: True for values that stand for no measurement.
        look: The way in which the file wants them seen.
    """
    values = _through_modality(stored, look.modality)
    pixels = np.where(is_padding, 0, counts)
    levels, window, rule = _through_interest(stored, values, pixels, look)
    if look.is_inverted:
        levels = WHITE - levels
    return GreyLevels(np.where(is_padding, np.uint8(0), levels), window, rule)


def _through_modality(
    stored: Int[np.ndarray, " num"], modality: Lookup | tuple[float, float]
) -> Float[np.ndarray, " num"]:
    values = stored.astype(np.float64)
    if isinstance(modality, Lookup):
        return modality(values)
    slope, intercept = modality
    return values * slope + intercept


def _through_interest(
    stored: Int[np.ndarray, " num"], values: Float[np.ndarray, " num"], counts: Int[np.ndarray, " num"], look: Look
) -> tuple[UInt8[np.ndarray, " num"], tuple[float, float] | None, str]:
    match look.voi:
        case Lookup() as table:
            return in_eight_bits(np.clip(table(values) / (2**table.bits - 1), 0, 1)), None, VOI_LUT
        case VoiWindow() as interest:
            rule = VOI_SIGMOID if interest.function == "SIGMOID" else VOI_WINDOW
            return in_eight_bits(interest(values)), interest.ends, rule
    is_grey_level = (stored >= 0) & (stored <= WHITE) & (stored == values)
    if look.is_eight_bit and (is_grey_level | (counts == 0)).all():
        return np.where(is_grey_level, stored, 0).astype(np.uint8), (0.0, float(WHITE)), AS_STORED
    window = choose_window(values, counts)
    return in_eight_bits(window.shares(values)), (window.low, window.high), window.rule
