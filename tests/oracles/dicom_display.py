"""DICOM's grey pipeline for one value, in the words of PS3.3 C.11.1.1, C.11.2.1.2, C.11.2.1.3 and C.7.6.3.1.2."""

import math


def value_of_cell(cell: int, bits_stored: int, high_bit: int, is_signed: bool) -> int:
    """The number that the stored bits of a cell are."""
    digits = f"{cell:016b}"[15 - high_bit : 15 - high_bit + bits_stored]
    number = int(digits, 2)
    return number - 2**bits_stored if is_signed and digits[0] == "1" else number


def grey_level(value: float, center: float, width: float, function: str, is_monochrome1: bool) -> float:
    """The displayed level, 0 to 255, of a value after the modality's transformation."""
    low, high = 0.0, 255.0
    if function == "LINEAR":
        if value <= center - 0.5 - (width - 1) / 2:
            level = low
        elif value > center - 0.5 + (width - 1) / 2:
            level = high
        else:
            level = ((value - (center - 0.5)) / (width - 1) + 0.5) * (high - low) + low
    elif function == "LINEAR_EXACT":
        if value <= center - width / 2:
            level = low
        elif value > center + width / 2:
            level = high
        else:
            level = ((value - center) / width + 0.5) * (high - low) + low
    else:
        exponent = -4 * (value - center) / width
        level = 0.0 if exponent > 700 else (high - low) / (1 + math.exp(exponent)) + low
    return high - level if is_monochrome1 else level
