"""The patients that an evaluation looks at: one image each, all of one split."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ace.embed.embedder import Image
from shards.core.grid import GridSpec
from shards.core.records import Split
from shards.reading.reader import ShardIndex, ShardReader


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A patient's canvas, its landmarks in canvas pixels, and which of its cells show the patient."""

    key: str
    canvas: Image
    landmarks: Mapping[str, tuple[float, float]]
    foreground: Bool[np.ndarray, "n n"]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients of one split in random order, so that the first few are a fair sample.

    Attributes:
        batch: Name of the shard set.
        split: The split that the patients are of.
        spec: Its grid.
        subjects: One image of each patient.
    """

    batch: str
    split: Split
    spec: GridSpec
    subjects: tuple[Subject, ...]

    @property
    def canvases(self) -> list[Image]:
        """Return every patient's canvas."""
        return [subject.canvas for subject in self.subjects]


def read_cohort(index: ShardIndex, split: Split, max_patients: int, seed: int) -> Cohort:
    """Choose patients of one split of a shard set, one image of each, by seed."""
    reader, chosen = ShardReader(index), choose_rows(index, split, max_patients, seed)
    return Cohort(
        batch=index.name,
        split=split,
        spec=index.spec,
        subjects=tuple(_read_subject(reader, int(row)) for row in chosen),
    )


def choose_rows(index: ShardIndex, split: Split, max_patients: int, seed: int) -> Int[np.ndarray, " patients"]:
    """Return the rows of one image of each of some patients, in random order; fewer patients are the first of more."""
    rows = np.random.default_rng(seed).permutation(index.select(split))
    _, first_of_patient = np.unique(index.rows["patient"][rows], return_index=True)
    chosen: Int[np.ndarray, " patients"] = rows[np.sort(first_of_patient)][:max_patients]
    return chosen


def _read_subject(reader: ShardReader, row: int) -> Subject:
    sample = reader.read(row)
    foreground = np.array(sample.meta["grid"]["foreground"], dtype=bool)
    return Subject(key=sample.key, canvas=sample.image, landmarks=sample.landmarks, foreground=foreground)
