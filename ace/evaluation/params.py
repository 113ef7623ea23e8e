"""The sections `encoders` and `evaluate` of params.yaml."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from ace.embed.opening import EncoderParams
from ace.evaluation.bounds import Bound
from ace.evaluation.measured import MeasuredSplit
from ace.properties.registry import PROPERTIES, PropertiesParams
from ace.protocol.features import DenseParams
from ace.protocol.intervals import BootstrapParams
from shards.core.config import Section

EncoderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
"""Name of a row in the metrics and the report."""


RESERVED = ("baselines", "measured", *(item.name for item in PROPERTIES))
"""Sections of the metrics that are no encoder's."""


def _checked(encoders: dict[str, EncoderParams]) -> dict[str, EncoderParams]:
    taken = [name for name in encoders if name in RESERVED or name.startswith("gain")]
    if taken:
        raise ValueError(f"'{taken[0]}' is a section of the metrics already; choose another name")
    first = next(iter(encoders))
    if encoders[first].network == "untrained":
        raise ValueError(
            f"the first encoder, '{first}', is untrained, and gains are the first one's; put another first"
        )
    return encoders


Encoders = Annotated[dict[EncoderName, EncoderParams], Field(min_length=1), AfterValidator(_checked)]


class _EncodersSection(Section):
    encoders: Encoders
    """Name → a network that is measured."""


def parse_encoders(values: Any, where: str) -> dict[str, EncoderParams]:
    """Validate the section `encoders`; `where` (as `params.yaml`) opens every message.

    Raises:
        ConfigError: with one line per mistake.
    """
    return _EncodersSection.from_params({"encoders": values}, where).encoders


class EvaluateParams(Section):
    """The evidence: on which patients, how it is measured, and what is expected of it."""

    batch: str = Field(min_length=1)
    """Key in `batches` of the shard set whose patients are used."""
    split: MeasuredSplit
    """Split whose patients are measured: `test` for results; `val` to choose settings by, so that no choice is made on
    the patients that results are of."""
    accept_shared_images: bool
    """Accepts a batch with images, or patients, that the encoder was trained on (docs/register.md)."""
    seed: int = Field(ge=0)
    """Seed of the patients chosen, of what properties draw, of the resamples, and of untrained encoders."""
    max_patients: int = Field(ge=2)
    """Largest number of patients used, one image each."""
    images_per_forward: int = Field(ge=1)
    """Images in one forward pass; speed and memory only."""
    dense: DenseParams
    """Locations of the canvas at which tokens are kept."""
    properties: PropertiesParams
    """Properties that are measured, each by the section of its name; one that has none is left out."""
    bootstrap: BootstrapParams
    """How the intervals over patients are drawn."""
    num_examples: int = Field(ge=1)
    """Examples of each property kept for the report's pictures."""
    checks: dict[str, Bound]
    """Dotted path in metrics/properties.json, as `trained.compositionality.low`, and the bound it is held to."""

    @model_validator(mode="after")
    def _enough_patients(self) -> Self:
        if not self.properties.chosen():
            raise ValueError("properties is empty: nothing would be measured; give it a property's section")
        for item, section in self.properties.chosen():
            needed = item.min_patients(section)
            if self.max_patients < needed:
                raise ValueError(
                    f"max_patients {self.max_patients} is below what properties.{item.name} needs: {needed}"
                )
        return self
