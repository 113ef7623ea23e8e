"""Pixels in [0, 1] become a network's input: a mean is subtracted and a deviation divides, in all channels or each."""

from collections.abc import Sequence
from typing import NamedTuple

from shards.core.errors import ConfigError

Levels = float | Sequence[float]
"""People write one number for all channels, or a list with one for each."""


class Normalisation(NamedTuple):
    """A normalisation turns each channel of an image into `(pixel − mean) / std`, for pixels in [0, 1].

    Attributes:
        mean: Subtracted from pixels; one number for all channels, or one for each.
        std: Divides them after; one number for all channels, or one for each.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Levels, std: Levels) -> "Normalisation":
        """Make one from what stands in a file or is given by a caller."""
        return cls(as_tuple(mean), as_tuple(std))

    def per_channel(self, channels: int, where: str, remedy: str = "give other numbers") -> "Normalisation":
        """Return the same normalisation with one number for each channel.

        Args:
            channels: Channels of the network's input.
            where: Opens the message, as `batches.clinic-b000.mix`.
            remedy: Advice at the end of the message.

        Raises:
            ConfigError: there are several numbers, and not as many as channels.
        """
        for name, levels in self._asdict().items():
            if len(levels) not in (1, channels):
                expected = "one number" if channels == 1 else f"one number, or a list of {channels}"
                raise ConfigError(
                    f"{where}: found a list of {len(levels)} as {name}, expected {expected}: the network takes "
                    f"{channels} channel(s) (pretrain.backbone.in_channels); {remedy}"
                )
        mean, std = (levels * (channels // len(levels)) for levels in self)
        return Normalisation(mean, std)

    def __str__(self) -> str:
        return f"{text_of(self.mean)} ± {text_of(self.std)}"


def as_tuple(levels: Levels) -> tuple[float, ...]:
    """Return levels as a tuple: one number for all channels, or one for each."""
    return tuple(map(float, levels)) if isinstance(levels, Sequence) else (float(levels),)


def as_written(levels: tuple[float, ...]) -> float | list[float]:
    """Return levels as a file has them: one number where it holds for all channels, else a list."""
    return levels[0] if len(levels) == 1 else list(levels)


def text_of(levels: tuple[float, ...]) -> str:
    """Return levels as a reader sees them: `0.5`, or `0.62, 0.31, 0.1`."""
    return ", ".join(f"{level:g}" for level in levels)
