"""A property plans what is asked of every encoder, reads the answers, and says how the report tells of it.

A new property is a file here with a subclass of `Property` and one of `Measurement`, a line in `registry.py`, and a
section of its name in `evaluate.properties` of params.yaml.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from ace.drawing.words import Words
from ace.embed.embedder import Embedder
from ace.protocol.cohort import Cohort
from ace.protocol.dense import LocationAxis, location_axis
from ace.protocol.features import CanvasView, DenseParams, Features
from ace.protocol.intervals import Measure
from shards.core.config import Section
from shards.reading.reader import ShardIndex

Answers = Mapping[str, Any]
"""Plain arrays by name; what one encoder answered to one property, or what is kept for the report's pictures."""
STREAMS = {"composition": 0, "decomposition": 1, "same_position": 2, "correspondence": 3, "fills": 4}
"""Random streams that were numbered before there was a registry; every other one is numbered by its name."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One figure before its interval.

    Attributes:
        measure: The figure as a function of the patients' weights.
        num_patients: Patients that it is of.
        chance: What guessing would give; None where nothing is guessed.
        is_error: Whether less is better.
        facts: Counts that stand beside the figure.
    """

    measure: Measure
    num_patients: int
    chance: float | None
    is_error: bool = False
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NotMeasured:
    """Says why a property cannot be measured on these patients."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Holds what properties plan from.

    Attributes:
        cohort: The patients, one image each.
        index: The shard set that they are of.
        dense: Where the locations of dense tokens lie.
        seed: The evaluation's.
        max_patients: Patients that the cohort may have at most.
        num_examples: Examples of each property that are kept for the report.
    """

    cohort: Cohort
    index: ShardIndex
    dense: DenseParams
    seed: int
    max_patients: int
    num_examples: int

    @cached_property
    def axis(self) -> LocationAxis:
        """Return the locations of dense tokens along one axis of a canvas."""
        return location_axis(self.cohort.spec, self.dense.locations_per_cell, self.dense.window_step_cells)

    def generator(self, stream: str) -> np.random.Generator:
        """Return the random generator of a stream, which depends on the seed and the stream's name alone."""
        number = STREAMS.get(stream, crc32(stream.encode()))
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))


class Measurement(ABC):
    """A property planned for one cohort: everything that is drawn is drawn, and equal for every encoder."""

    def dense_views(self) -> Sequence[CanvasView]:
        """Return the canvases whose dense tokens `ask` and `pictures` look up; none by default."""
        return ()

    @abstractmethod
    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Ask one encoder.

        Args:
            embedder: The encoder.
            features: Its dense tokens of `dense_views`.

        Returns:
            Plain arrays by name, from which `read` and `pictures` follow without a network.
        """

    @abstractmethod
    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Turn one encoder's answers into figures by name."""

    def details(self, answers: Answers) -> Mapping[str, Reading]:
        """Return figures that stand in a section of the metrics of their own, named after the property."""
        return {}

    def left_out(self) -> Mapping[str, NotMeasured]:
        """Return the figures by name that these patients do not allow, each with the reason."""
        return {}

    def baselines(self) -> Mapping[str, Mapping[str, Reading]]:
        """Return figures that need no encoder: name of the encoders' figure → name of the baseline → reading."""
        return {}

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Return the arrays that the report draws, given the answers and dense tokens of every encoder by its name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Says how one figure is told.

    Attributes:
        title: Its row in the page's table.
        number: Format of its numbers.
        group: What the rows of the terminal's table are called from this one on; empty goes on with the last.
        summary: Its row in the terminal's table; empty leaves it out.
    """

    title: str
    number: str
    group: str = ""
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Holds what a property's part of the report is made of.

    Attributes:
        encoders: Names, the first one is the one that gains are computed of.
        figures: metrics/properties.json.
        params: The property's section, as it was when the evidence was made.
        arrays: What `pictures` returned.
        words: What the page calls patients and levels.
    """

    encoders: Sequence[str]
    figures: Mapping[str, Any]
    params: Mapping[str, Any]
    arrays: Answers
    words: Words


class Property(ABC):
    """One property of embeddings; texts may have {one} and {many} in them (`Words`)."""

    name: ClassVar[str]
    """Key of its section in `evaluate.properties`, of its answers and of its part of the page."""
    params: ClassVar[type[Section]]
    """Type of its section in `evaluate.properties`."""
    title: ClassVar[str]
    """Title of its card or section."""
    question: ClassVar[str]
    """Question that it answers."""
    headline: ClassVar[str | None] = None
    """The figure that stands for it, whose unit is `unit`; None for pictures alone."""
    unit: ClassVar[str] = ""
    """Unit of the headline; {num_candidates} is the figure's own."""
    is_error: ClassVar[bool] = False
    """Tells that less is better in the headline."""
    has_card: ClassVar[bool] = False
    """Tells that it has a card at the top of the page."""
    figures: ClassVar[Mapping[str, Figure]] = {}
    """Its figures by name, in the order of the tables."""
    text: ClassVar[str] = ""
    """The paragraph of its section that says what is done."""
    template: ClassVar[str | None] = None
    """File in this folder with its section's HTML; None: the text, and what `shown` has one below the other."""

    def min_patients(self, params: Any) -> int:
        """Return how many patients it needs; with fewer the evaluation is refused."""
        return 1

    @abstractmethod
    def plan(self, setting: Setting, params: Any) -> Measurement | NotMeasured:
        """Draw what is asked of every encoder, or say why there is nothing to ask.

        Args:
            setting: The patients, and the random generators of the property's streams.
            params: The property's section of params.yaml.
        """

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Return what its template shows as `own`; without a template: `pictures`, a list of HTML, and a `note`."""
        return {"pictures": [], "note": ""}


def gain_key(encoder: str) -> str:
    """Return the section of the metrics that holds what the first encoder gains over another one."""
    return "gain" if encoder == "untrained" else f"gain_over_{encoder}"
