"""Words and numbers as the report writes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_COLOURS = 8
"""Colours of encoders in the style sheet; more encoders share them."""
NOTHING = ("\N{EN DASH}", "")
"""A figure that was not measured."""


@dataclass(frozen=True)
class Words:
    """Words that the page uses for what was measured.

    Attributes:
        one: `patient`, or `image` where nobody knows the patients and each image stands for one.
    """

    one: str

    @property
    def many(self) -> str:
        """The plural of `one`."""
        return f"{self.one}s"

    def fill(self, text: str, **values: Any) -> str:
        """Put the words, and other values, into a text's braces."""
        return text.format(one=self.one, many=self.many, **values)


def encoder_name(name: str) -> str:
    """Return what the page calls an encoder; other names than `imagenet` are as they are."""
    return "ImageNet" if name == "imagenet" else name


def encoder_mark(number: int) -> str:
    """Return the class in the style sheet, and the variable of the colour, of an encoder by its position."""
    return f"encoder-{number % NUM_COLOURS}"


def with_interval(figure: Mapping[str, Any], number: str) -> tuple[str, str]:
    """Return the figure and its interval, which is empty if it has none; a dash if it was not measured."""
    if figure["value"] is None:
        return NOTHING
    names = [name for name in ("value", "low", "high") if name in figure]
    value, *ends = (number.format(figure[name]).replace("-", "\N{MINUS SIGN}") for name in names)
    return value, f"[{', '.join(ends)}]" if ends else ""
