"""The test patients an evaluation looks at: one image each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from ace.evaluation.embedding import Image
from shards.grid import GridSpec
from shards.read import ShardIndex, ShardReader


@dataclass(frozen=True)
class Subject:
    """A test patient's canvas, its landmarks in canvas pixels, and which of its cells show the patient."""

    key: str
    canvas: Image
    landmarks: Mapping[str, tuple[float, float]]
    foreground: Bool[np.ndarray, "n n"]


@dataclass(frozen=True)
class Cohort:
    """Test patients in random order, so that the first few are a fair sample.

    Attributes:
        batch: Name of the shard set.
        spec: Its grid.
        subjects: One image of each patient.
    """

    batch: str
    spec: GridSpec
    subjects: tuple[Subject, ...]


def read_cohort(index: ShardIndex, max_patients: int, seed: int) -> Cohort:
    """Choose test patients of a shard set, one image of each, by seed."""
    reader = ShardReader(index)
    rng = np.random.default_rng(seed)
    test_rows = rng.permutation(index.select("test"))
    _, first_of_patient = np.unique(index.rows["patient"][test_rows], return_index=True)
    chosen = test_rows[np.sort(first_of_patient)][:max_patients]
    return Cohort(index.name, index.spec, tuple(_read_subject(reader, int(row)) for row in chosen))


def _read_subject(reader: ShardReader, row: int) -> Subject:
    sample = reader.read(row)
    foreground = np.array(sample.meta["grid"]["foreground"], dtype=bool)
    return Subject(sample.key, sample.image, sample.landmarks, foreground)
