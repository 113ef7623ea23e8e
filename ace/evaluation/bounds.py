"""Bounds that figures are held to."""

from typing import Self

from pydantic import model_validator

from shards.core.config import Section


class Bound(Section):
    """A bound limits a metric; an absent side is unbounded."""

    min: float | None = None
    """Smallest accepted value."""
    max: float | None = None
    """Largest accepted value."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a bound needs a min, a max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def accepts(self, value: float) -> bool:
        """Tell whether the value lies within the bound, its ends included."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)
