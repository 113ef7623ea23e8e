"""Say whose figures the metrics are: the weights and the patients that were measured."""

from typing import Literal

from pydantic import Field

from shards.core.config import Section

MEASURED = "measured"
"""The section of metrics/properties.json that says so; releases before it wrote none."""
MeasuredSplit = Literal["test", "val"]


class Measured(Section):
    """Says which weights and which patients the figures are of, so that they are taken for no others'."""

    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The sha256 of the file that holds the weights of the first encoder."""
    batch: str
    """The shard set."""
    split: MeasuredSplit
    """Split whose patients were measured."""
    num_patients: int = Field(ge=1)
    """Patients measured, one image each."""
    num_shared_patients: int | None = Field(ge=0)
    """Patients of the whole split that its model was trained on; null where nothing tells."""
    batches_that_may_share_images: tuple[str, ...] | None
    """Training batches whose dataset holds some of the same images, which no mapping told apart; null likewise."""
    batches_without_patients: tuple[str, ...] = ()
    """Batches trained on or measured whose patients are unknown: an image stands for a patient there, and one patient's
    images may be on both sides. Not written where there are none."""
