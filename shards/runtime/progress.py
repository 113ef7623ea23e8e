"""Progress bars with rate and time left: redrawn on a terminal, a line every few seconds elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, total: int, description: str, unit: str, initial: int = 0) -> Iterator[Item]:
    """Iterate with a bar; `unit` is the singular of what is counted, as `image`."""
    yield from progress_bar(items, total=total, description=description, unit=unit, initial=initial)


def progress_bar(
    items: Any = None,
    *,
    total: int | None,
    description: str,
    unit: str,
    initial: int = 0,
    show: bool = True,
    scale_unit: bool = False,
    delay_s: float = 0.0,
) -> "tqdm[Any]":
    """Make a progress bar, for loops that update it by hand or show figures beside it.

    `total` may be unknown; `scale_unit` writes 1.5M for 1500000, for bytes; what ends within `delay_s` is not shown.
    """
    is_terminal = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        dynamic_ncols=is_terminal,
        ncols=None if is_terminal else 100,
        mininterval=0.2 if is_terminal else 10.0,
        file=sys.stderr,
        disable=not show,
        unit_scale=scale_unit,
        delay=delay_s,
    )
