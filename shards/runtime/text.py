"""Plain text for people: counted things and tables."""

from collections.abc import Sequence


def count_of(number: int, thing: str) -> str:
    """Write a number and what it counts, in the plural unless it is one: 1 image, 1,200 images."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right, with a line under the header."""
    widths = [max(len(row[col]) for row in rows) for col in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if col == 0 else cell.rjust(width) for col, (cell, width) in _cells(row, widths))
        for row in rows
    ]
    return "\n".join([lines[0].rstrip(), "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])])


def _cells(row: Sequence[str], widths: Sequence[int]) -> enumerate[tuple[str, int]]:
    return enumerate(zip(row, widths, strict=True))
