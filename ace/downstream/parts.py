"""Choose whose images train, validate and test: by patient, and a smaller amount of labels within a larger."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from ace.downstream.params import TaskParams
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex


@dataclass(frozen=True)
class Part:
    """Some images of a shard set.

    Attributes:
        index: The shard set.
        rows: Their rows in it, ascending.
    """

    index: ShardIndex
    rows: Int[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> list[str]:
        """Return the images' keys."""
        return self.index.keys(self.rows)

    @cached_property
    def pseudonyms(self) -> list[str]:
        """Return the patient of each image."""
        return [patient.decode("ascii") for patient in self.index.rows["patient"][self.rows].tolist()]

    @cached_property
    def patients(self) -> Int[np.ndarray, " images"]:
        """Return the number of each image's patient, counted from 0."""
        return np.unique(self.pseudonyms, return_inverse=True)[1]

    @property
    def num_patients(self) -> int:
        """Count the patients."""
        return len(set(self.pseudonyms))

    def where(self, is_kept: Bool[np.ndarray, " images"]) -> "Part":
        """Return the part with some of the images."""
        return Part(self.index, self.rows[is_kept])

    def of_patients(self, patients: set[str]) -> "Part":
        """Return the part with the images of some patients."""
        return self.where(np.isin(self.pseudonyms, list(patients)))


@dataclass(frozen=True)
class Parts:
    """Images of three groups of patients, none of whom is in two, unless settings are chosen on `val` alone.

    Attributes:
        train: To train on, all of them.
        val: To choose the best network of a training on.
        test: To measure, once.
    """

    train: Part
    val: Part
    test: Part

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter([("train", self.train), ("val", self.val), ("test", self.test)])


def divide(index: ShardIndex, params: TaskParams) -> Parts:
    """Divide a shard set's images by its own patient-level splits, and by `val_share`.

    Raises:
        ConfigError: a part is empty.
    """
    train, val, test = (Part(index, index.select(split)) for split in ("train", "val", params.split))
    if params.val_share > 0:
        # The same ones for every seed and amount, whatever other patients there are.
        chosen = set(_in_order(train, "val")[: round(params.val_share * train.num_patients)])
        val = train.of_patients(chosen)
        train = train.where(~np.isin(train.pseudonyms, list(chosen)))
    parts = Parts(train, val, test)
    for name, part in parts:
        if not len(part):
            raise ConfigError(
                f"{index.name} has no images to take as '{name}' (split {params.split}, val_share "
                f"{params.val_share:g}); give that split patients (shard.splits, or the dataset's official lists), or "
                "set val_share above 0 to validate on training patients"
            )
    return parts


@dataclass(frozen=True)
class Amount:
    """Says how much of the training part is trained on.

    Attributes:
        fraction: Share of the patients; None for a number of images a class.
        shots: Images of each class; None for a share.
    """

    fraction: float | None = None
    shots: int | None = None

    @property
    def name(self) -> str:
        """Its name in metrics and folders, as `25pct` or `5shot`."""
        return f"{self.shots}shot" if self.fraction is None else f"{100 * self.fraction:g}pct".replace(".", "_")


def amounts_of(params: TaskParams) -> list[Amount]:
    """List the amounts of a task, the largest share first."""
    return [
        *(Amount(fraction=fraction) for fraction in sorted(params.fractions, reverse=True)),
        *(Amount(shots=shots) for shots in sorted(params.shots, reverse=True)),
    ]


def draw(part: Part, classes: Bool[np.ndarray, "images classes"], amount: Amount, seed: int) -> Part:
    """Draw what is trained on; of one seed a smaller amount is within a larger one.

    Args:
        part: All there is to train on.
        classes: Which classes each image is of.
        amount: How much of it.
        seed: Decides which patients.

    Raises:
        ConfigError: a class has too few patients.
    """
    order = _in_order(part, seed)
    if amount.fraction is not None:
        return part.of_patients(set(order[: max(1, round(amount.fraction * len(order)))]))
    assert amount.shots is not None
    turn = {patient: number for number, patient in enumerate(order)}
    images = sorted(range(len(part)), key=lambda image: (turn[part.pseudonyms[image]], image))
    is_drawn = np.zeros(len(part), bool)
    for column, is_of_class in enumerate(classes.T):
        # Of each patient the first image of the class.
        first = {part.pseudonyms[image]: image for image in reversed(images) if is_of_class[image]}
        chosen = sorted(first.values(), key=lambda image: turn[part.pseudonyms[image]])[: amount.shots]
        if len(chosen) < amount.shots:
            raise ConfigError(
                f"class {column + 1} of {classes.shape[1]} (the task's labels in their order, then none of them) has "
                f"{len(chosen)} training patients, and {amount.shots} images of it are to be trained on, each of "
                "another patient; lower shots"
            )
        is_drawn[chosen] = True
    return part.where(is_drawn)


def _in_order(part: Part, salt: object) -> list[str]:
    """The patients in an order that depends on each one's pseudonym and the salt alone."""
    return sorted(set(part.pseudonyms), key=lambda patient: hashlib.sha256(f"{salt}/{patient}".encode()).digest())
