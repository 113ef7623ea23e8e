"""How pixels in [0, 1] become a network's input: minus a mean, over a deviation, of all channels or of each."""

from collections.abc import Sequence
from typing import NamedTuple

from shards.errors import ConfigError

Levels = float | Sequence[float]
"""As people write it: one number for all channels, or a list with one for each."""


class Normalisation(NamedTuple):
    """`(pixel − mean) / std`, channel by channel.

    Attributes:
        mean: One number for all channels, or one for each.
        std: The same.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Levels, std: Levels) -> "Normalisation":
        """From what stands in a file or is given by a caller."""
        return cls(as_tuple(mean), as_tuple(std))

    def per_channel(self, channels: int, where: str, remedy: str = "give other numbers") -> "Normalisation":
        """With one number for each channel.

        Args:
            channels: Of the network's input.
            where: Opens the message, as `batches.clinic-b000.mix`.
            remedy: What to do, for the message.

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
    """One number for all channels, or one for each."""
    return tuple(map(float, levels)) if isinstance(levels, Sequence) else (float(levels),)


def as_written(levels: tuple[float, ...]) -> float | list[float]:
    """For a file: one number where it holds for all channels, else a list."""
    return levels[0] if len(levels) == 1 else list(levels)


def text_of(levels: tuple[float, ...]) -> str:
    """For a reader: `0.5`, or `0.62, 0.31, 0.1`."""
    return ", ".join(f"{level:g}" for level in levels)
