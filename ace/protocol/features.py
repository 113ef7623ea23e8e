"""The feature store: dense tokens of canvases, encoded once for each encoder and shard set, and read by many.

    HASH/index.json     what the tokens depend on, and the chunk and row of each canvas
    HASH/00000.npy      directions of the tokens [canvases, locations, locations, dim], fp32

HASH is of what the tokens depend on. Chunks are written one after another and mapped into memory when read, so that
neither needs more memory than a chunk; the index comes last, so a folder without one is not finished.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ace.embed.embedder import Embedder, Image
from ace.protocol.dense import DirectionMap, LocationAxis, dense_features
from shards.core.config import Section
from shards.core.errors import ConfigError
from shards.runtime.atomic import atomic_path, write_text
from shards.runtime.progress import progress

INDEX = "index.json"
FORMAT = 1
CANVASES_PER_CHUNK = 8


class DenseParams(Section):
    """Dense tokens: where the locations of a canvas lie, and in which windows they are looked at."""

    locations_per_cell: int = Field(ge=2)
    """Locations along one side of a cell; 2 is a stride of half a cell."""
    window_step_cells: int = Field(ge=1)
    """Distance of neighbouring windows, in cells; 1 sees every location at its window's centre, more is faster."""


@dataclass(frozen=True)
class CanvasView:
    """Names one canvas of the cohort: the key of its image, and whether it is shown mirrored left to right."""

    key: str
    is_mirrored: bool = False

    @property
    def name(self) -> str:
        """Its name in the index."""
        return f"{self.key} mirrored" if self.is_mirrored else self.key

    def shown(self, canvas: Image) -> Image:
        """Return the canvas as the encoder sees it."""
        return np.ascontiguousarray(canvas[:, ::-1]) if self.is_mirrored else canvas


@dataclass(frozen=True)
class Features:
    """Dense tokens of one encoder, by canvas.

    Attributes:
        folder: The finished folder HASH.
        rows: Name of a canvas → chunk and row.
        chunks: Chunks that are mapped into memory, by number.
    """

    folder: Path
    rows: Mapping[str, tuple[int, int]]
    chunks: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Features":
        """Open a finished folder.

        Raises:
            ConfigError: it is not finished, or of another format.
        """
        path = folder / INDEX
        if not path.is_file():
            raise ConfigError(f"{path}: not found; `dvc repro measure` writes it")
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ConfigError(f"{path}: format {index['format']}, this release reads {FORMAT}; measure again")
        chunks = enumerate(index["chunks"])
        return cls(folder, {name: (number, row) for number, names in chunks for row, name in enumerate(names)})

    def of(self, view: CanvasView) -> DirectionMap:
        """Return the direction of the token at every location of a canvas.

        Raises:
            ConfigError: the canvas was not encoded; its property has to name it in `dense_views`.
        """
        if view.name not in self.rows:
            raise ConfigError(f"{self.folder}: has no dense tokens of '{view.name}'; measure the encoder again")
        number, row = self.rows[view.name]
        if number not in self.chunks:
            self.chunks[number] = np.load(self.folder / _chunk_name(number), mmap_mode="r", allow_pickle=False)
        found: DirectionMap = self.chunks[number][row]
        return found


def write_features(
    root: Path,
    embedder: Embedder,
    axis: LocationAxis,
    canvases: Mapping[CanvasView, Image],
    depends_on: Mapping[str, Any],
) -> Features:
    """Encode canvases and write their dense tokens below `root`, in a folder named by what they depend on.

    Args:
        root: Folder of the store.
        embedder: The encoder.
        axis: The locations.
        canvases: What is encoded, as the shards hold it.
        depends_on: Everything that decides the tokens beside the canvases, as JSON: weights, normalisation, precision,
            shard set, grid, windows.
    """
    identity = json.dumps({"format": FORMAT, **depends_on}, sort_keys=True)
    folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.mkdir(parents=True)
    shown = progress(canvases.items(), total=len(canvases), description=f"dense tokens, {embedder.name}", unit="canvas")
    remaining = iter(shown)
    chunks: list[Sequence[str]] = []
    while part := list(islice(remaining, CANVASES_PER_CHUNK)):
        tokens = np.stack([dense_features(embedder, view.shown(canvas), axis) for view, canvas in part])
        with atomic_path(folder / _chunk_name(len(chunks))) as temporary, temporary.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
        chunks.append([view.name for view, _ in part])
    index = {"format": FORMAT, "depends_on": depends_on, "chunks": chunks}
    write_text(folder / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
    return Features.open(folder)


def views_of(keys: Iterable[str], *, is_mirrored: bool = False) -> list[CanvasView]:
    """Name the canvases of images."""
    return [CanvasView(key, is_mirrored) for key in keys]


def _chunk_name(number: int) -> str:
    return f"{number:05d}.npy"
