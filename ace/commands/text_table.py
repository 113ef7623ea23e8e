"""Tables of words for the terminal."""

from collections.abc import Sequence

from shards.runtime.text import table


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align all columns to the left, as words are read, with a line under the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return table([[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows])
