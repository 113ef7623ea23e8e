"""A kind of task reads its truth from shards, makes a network of an encoder, and scores what that answers.

A new kind is a file here with a subclass of `Task` and one of `TaskParams`, and a line in `registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.downstream.examples import Example
from ace.downstream.params import TaskParams
from ace.downstream.parts import Part
from ace.downstream.shown import ShownPart
from ace.downstream.views import View
from ace.embed.encoder import Encoder
from ace.protocol.intervals import Measure
from shards.core.canvas import Canvas
from shards.reading.reader import Sample

Arrays = Mapping[str, np.ndarray]
"""Plain arrays by name, of which each has a row for every image of a part; answers may also have some with a row for
each of a few cases, of which one says whose they are."""
Params = TypeVar("Params", bound=TaskParams)
FULL = "full"
"""The method that trains encoder and head together; every kind of task has it."""


@dataclass(frozen=True)
class Target:
    """Holds what a network is to answer for one image.

    Attributes:
        values: The answer; of the shape that all images of the task have.
        known: Which of it counts.
    """

    values: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Score:
    """Holds one figure before its interval.

    Attributes:
        measure: The figure as a function of the weights of the part's patients.
        chance: What guessing would give; None where nothing is guessed.
        facts: Counts that stand beside the figure.
    """

    measure: Measure
    chance: float | None
    facts: Mapping[str, int]


class Task(ABC, Generic[Params]):
    """Is one kind of task, with the parameters of one file."""

    kind: ClassVar[str]
    """Value of `kind` in the file."""
    params_type: ClassVar[type[TaskParams]]
    """Type of the file."""
    code: ClassVar[tuple[str, ...]]
    """Modules of this kind alone that decide a result, as paths in the repository."""
    libraries: ClassVar[tuple[str, ...]]
    """Packages, beside those that every run records, whose version decides a result."""

    def __init__(self, params: Params) -> None:
        """Take the parameters."""
        self.params = params

    @property
    @abstractmethod
    def headline(self) -> str:
        """Return the name of the figure that stands for the task, and that validation maximises."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the ways in which an encoder is used; the first one has its examples on the page."""
        return (FULL,)

    @abstractmethod
    def truth(self, part: Part, *, is_training: bool) -> Arrays:
        """Read what is known of the images of a part, or what training takes for known."""

    @abstractmethod
    def classes(self, truth: Arrays) -> Bool[np.ndarray, "images classes"]:
        """Tell which classes each image is of, for few-shot draws; an image of none is not used at all."""

    @abstractmethod
    def target(self, sample: Sample, view: View, rng: np.random.Generator) -> Target:
        """Make the answer that a network is to learn for one view of an image."""

    @abstractmethod
    def network(self, encoder: Encoder) -> nn.Module:
        """Put a head with random weights on an encoder; the network takes the encoder's input."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Compute the mean loss of a batch over what is known of it; 0 where that is nothing."""

    @abstractmethod
    def answer(self, network: nn.Module, shown: ShownPart, *, is_final: bool) -> Arrays:
        """Ask a network, in evaluation mode, about a part.

        Args:
            network: As `network` made it, trained.
            shown: The images.
            is_final: Whether it is the last word, for which several views of an image may be asked.
        """

    def answer_frozen(
        self, method: str, features: Mapping[str, Float[np.ndarray, "images dim"]], truths: Mapping[str, Arrays]
    ) -> Arrays:
        """Answer for the part `test` by E(x) of a frozen encoder.

        Args:
            method: One of `methods` that trains no encoder.
            features: E(x) of the parts `train`, `val` and `test`, in the order of their rows.
            truths: What is known of them.
        """
        raise NotImplementedError(f"{self.kind} has no method '{method}'")

    @abstractmethod
    def validation_score(self, truth: Arrays, answers: Arrays) -> float:
        """Return the figure, the higher the better, that decides which of a training's networks is kept."""

    @abstractmethod
    def check(self, truths: Mapping[str, Arrays]) -> None:
        """Check before any work that the parts `train`, `val` and `test` can train, choose and be scored.

        Raises:
            ConfigError: they cannot.
        """

    @abstractmethod
    def scores(self, truth: Arrays, answers: Arrays, part: Part) -> Mapping[str, Score]:
        """Score answers; the names may have a `/` that divides a figure from what it is of, as `auroc/nodule`."""

    @abstractmethod
    def losses(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, " images"]:
        """Return a loss of each image, by which the page chooses best, median and worst."""

    @abstractmethod
    def shown_answer(self, truth: Arrays, answers: Arrays, image: int, canvas: Canvas) -> dict[str, Any]:
        """Return what the page shows beside an image: `rows` of (name, truth, answer), or `overlay`, an RGB picture.

        Args:
            truth: What is known of the part.
            answers: What was answered.
            image: Position of the image in the part.
            canvas: The image's levels, grey or RGB.
        """

    def further_examples(self, answers: Arrays, part: Part) -> list[Example]:
        """Draw what the page shows besides, chosen by something else than the loss of an image."""
        del answers, part
        return []
