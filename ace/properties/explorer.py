"""The explorer: which canvases explorer.html shows, so that every encoder's dense tokens of them are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from ace.embed.embedder import Embedder
from ace.properties.base import Answers, Measurement, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import with_landmarks
from ace.protocol.features import CanvasView, Features, views_of
from shards.core.config import Section


class ExplorerParams(Section):
    """Choose what explorer.html shows.

    Its size is about num_components × (num_patients + num_mirrored) × locations bytes an encoder, and a third more in
    the file.
    """

    num_patients: int = Field(ge=2)
    """Patients on the page, those with landmarks first."""
    num_mirrored: int = Field(ge=0)
    """The first of them, whose canvases are encoded mirrored as well, for the search with mirrored tokens."""
    num_components: int = Field(ge=3)
    """Numbers of 8 bits that a token is reduced to; the page says how often it then finds the same place."""


@dataclass(frozen=True)
class ExplorerMeasurement(Measurement):
    """The patients that are shown, and how many of them mirrored as well."""

    subjects: tuple[Subject, ...]
    num_mirrored: int

    @property
    def mirrored(self) -> tuple[Subject, ...]:
        """Return the patients who are encoded mirrored as well."""
        return self.subjects[: self.num_mirrored]

    def dense_views(self) -> Sequence[CanvasView]:
        """Every shown patient's canvas, and the first ones mirrored."""
        plain, mirrored = ([subject.key for subject in some] for some in (self.subjects, self.mirrored))
        return [*views_of(plain), *views_of(mirrored, is_mirrored=True)]

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Ask nothing: the page is made of dense tokens."""
        return {}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Return no figures."""
        return {}


class Explorer(Property):
    """Keeps what explorer.html is made of; the stage `explore` writes the page."""

    name = "explorer"
    params = ExplorerParams
    title = "Explorer"
    question = "Where does another {one} show what is under the pointer?"
    text = (
        "reports/explorer.html answers while the pointer moves over a picture: it shows how alike every place of the "
        "other {many} is, for each encoder, with the best match."
    )

    def plan(self, setting: Setting, params: ExplorerParams) -> ExplorerMeasurement:
        """Choose the first patients, of those with landmarks where there are some."""
        subjects = with_landmarks(setting.cohort.subjects, params.num_patients) or setting.cohort.subjects
        return ExplorerMeasurement(subjects[: params.num_patients], params.num_mirrored)
