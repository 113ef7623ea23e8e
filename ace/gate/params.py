"""The section `operations.gate` of params.yaml: the bounds that a model is accepted by."""

from pydantic import Field

from ace.models.params import Sha256
from shards.core.config import Section

MODEL = "models/ace"
"""The model of the pipeline, in the work tree, which the gate decides about; nothing serves from it."""


class FigureParams(Section):
    """Bounds of one figure (an item of `operations.gate.figures`); margins are in the figure's own unit."""

    margin: float = Field(ge=0)
    """Bound on how much worse than the incumbent the candidate may be: the lower end of the interval of the paired
    difference, with its sign turned so that above 0 is better, is at least the negative of this."""
    subgroup_margin: float | None = Field(default=None, ge=0)
    """Margin that holds within each subgroup of patients; None: `margin`. A quarter of the patients doubles the
    interval."""
    floor: float | None = None
    """Smallest accepted figure of the candidate, for one that is better when it is higher."""
    ceiling: float | None = None
    """Largest accepted figure of the candidate, for an error."""


class FrozenParams(Section):
    """The images on which models are compared, which nobody trains on (section `operations.gate.frozen`)."""

    batch: str
    """Name of the batch: that of `evaluate.batch`, which is not in `mix`, or there with weight 0."""
    fingerprint: Sha256
    """sha256 of its data/shards/NAME/index.json, and so of all its images; what is excluded of it leaves this alone."""


class GateParams(Section):
    """Bounds that a model is accepted by (section `operations.gate`); see docs/operations.md."""

    frozen: FrozenParams
    """The images that models are compared on."""
    figures: dict[str, FigureParams] = Field(min_length=1)
    """Name in metrics/properties.json, as `decompositionality`, and its bounds."""
    min_patients: int = Field(default=50, ge=2)
    """Patients that each figure has to be of, at least."""
    min_subgroup_patients: int = Field(default=30, ge=2)
    """Patients from which on a subgroup (sex, decade of age, view) is looked at by itself."""
