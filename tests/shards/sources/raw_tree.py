"""Files of small trees in the layouts of public datasets."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, size_px: int = 8, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.full((size_px, size_px), 4000, np.uint16)).save(path)
    else:
        Image.new(mode, (size_px, size_px), 90 if mode == "L" else (90, 90, 90, 255)).save(path)


def write_lines(path: Path, *lines: str, end: str = "\n", start: str = "") -> Path:
    """A text file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (start + "".join(line + end for line in lines)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_placeholders(root: Path, paths: list[str]) -> None:
    """Empty files, for readings of whole lists: sources read no pixels."""
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).touch()
