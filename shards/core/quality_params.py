"""The section `shard.quality` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from shards.core.config import Section

Action = Literal["quarantine", "remark", "ignore"]
"""Action of a check on the images that it finds: keep them out of the shards, only name them in the report, or none."""

Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


class ViewMeanParams(Section):
    """Conditions on which a view's mean image judges its images."""

    min_images: int = Field(ge=2)
    """Images that a view must have."""
    min_coherence: Correlation
    """Least median correlation of a view's images with their mean; below it they have no common appearance."""


class BlankParams(Section):
    """Images that show nothing; one bound is enough."""

    action: Action
    """Action on these images."""
    min_std: float = Field(ge=0)
    """Grey levels (0 to 255) that the standard deviation must reach."""
    max_one_level: Share
    """Greatest share of the pixels on the commonest grey level."""
    min_levels: int = Field(ge=0, le=256)
    """Least number of grey levels in use."""
    min_entropy_bits: float = Field(ge=0, le=8)
    """Least entropy of the grey levels, bits a pixel."""


class SaturatedParams(Section):
    """Images that were cut off when they were made 8 bits deep; one bound is enough."""

    action: Action
    """Action on these images."""
    max_white: Share
    """Greatest share of the pixels at 255; 16-bit images cut off at 255 are nearly all white."""
    max_black: Share
    """Greatest share of the pixels at 0."""
    min_brightest: int = Field(ge=0, le=255)
    """Grey level that the brightest pixel must reach."""


class InvertedParams(Section):
    """Negatives, by their view's mean image."""

    action: Action
    """Action on these images."""
    max_correlation: Correlation
    """An image that correlates less than this with the mean of its view, and whose middle does so too, is a negative:
    white edges alone make none."""


class TurnedParams(Section):
    """Images upside down or on their sides, by their view's mean image; both bounds must be passed."""

    action: Action
    """Action on these images."""
    min_correlation: Correlation
    """Correlation with the turned mean of the view that it is above."""
    min_gain: float = Field(ge=0, le=2)
    """Least gain of that over the correlation with the mean as it is."""


class LateralParams(Section):
    """Find images that are called frontal but do not look like it.

    Such an image is unlike every frontal image of the batch, and so is its middle; both bounds must be passed.
    """

    action: Action
    """Action on these images."""
    max_correlation: Correlation
    """Correlation with the mean of its view that it is below."""
    min_deviations: float = Field(ge=0)
    """Robust standard deviations below the view's median correlation; images of any view beyond are remarked on."""


class BurnedInParams(Section):
    """Images whose header says that text is burned into the pixels."""

    action: Action
    """Action on these images."""


class ExactCopyParams(Section):
    """Images with the same file or the same pixels as another one; one of them stays, of the test split if any is."""

    action: Action
    """Action on all but the first."""


class NearCopyParams(Section):
    """Images that are another one after compression, resizing, a change of brightness or a slight crop."""

    action: Action
    """Action on those in a less protected split (train, then val); others in one split are remarked on."""
    max_bits: int = Field(ge=0, le=16)
    """Greatest number of different bits of the 64 of the perceptual hashes; candidates are then compared."""
    min_correlation: Correlation
    """Least correlation of the details of two aligned thumbnails of different patients."""
    min_correlation_of_patient: Correlation
    """Least correlation for two images of one patient, whose exposures are alike."""


class MaskParams(Section):
    """Images with a finding's mask although the label says absent, or the reverse."""

    action: Action
    """Action on these images."""


class QualityParams(Section):
    """Checks that keep an image out of the shards, or get it a remark (section `shard.quality`)."""

    view_means: ViewMeanParams
    """Conditions on which a view has a mean image."""
    blank: BlankParams
    """Images that show nothing."""
    saturated: SaturatedParams
    """Images cut off at white or black."""
    inverted: InvertedParams
    """Negatives."""
    turned: TurnedParams
    """Upside down, on their sides."""
    lateral: LateralParams
    """Laterals among frontals."""
    burned_in: BurnedInParams
    """Text in the pixels, by the header."""
    exact_copies: ExactCopyParams
    """Images of the same file or the same pixels."""
    near_copies: NearCopyParams
    """Images of the same picture."""
    masks: MaskParams
    """Masks that contradict labels."""
