"""The `report` section of params.yaml."""

from pydantic import Field

from shards.core.config import Section


class ReportParams(Section):
    """Parameters of the report's wording and drawing; nothing here changes a figure."""

    title: str | None = Field(min_length=1)
    """Heading of the page; null: one that names the measured batch, or the phantom."""
    num_pictured: int = Field(ge=1)
    """Encoders that cards and pictures are of, the first ones of `encoders`; the table of all has every one."""
    seed: int = Field(ge=0)
    """Chooses the image and the crop pair that explain the grid."""
    smoothing_steps: int = Field(ge=1)
    """Logged rows averaged in the training curves; the raw curve stays visible behind."""
