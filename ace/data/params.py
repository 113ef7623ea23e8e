"""Parameters of views and augmentation: parts of the section `pretrain` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.core.config import Section

Probability = Annotated[float, Field(ge=0, le=1)]


class BrightnessContrastParams(Section):
    """Grey levels scaled about their mean, then shifted."""

    probability: Probability
    """Share of the crops it is applied to; the paper's is 0.5."""
    max_brightness: float = Field(ge=0, le=1)
    """Largest shift either way, as a fraction of the grey range."""
    max_contrast: float = Field(ge=0, lt=1)
    """Largest change of the contrast factor from 1, either way."""


class BlurParams(Section):
    """Gaussian blur."""

    probability: Probability
    """Share of the crops it is applied to; the paper's is 0.5."""
    min_sigma_px: float = Field(gt=0)
    """Least standard deviation, in crop pixels."""
    max_sigma_px: float = Field(gt=0)
    """Greatest standard deviation, in crop pixels."""

    @model_validator(mode="after")
    def _widths_are_ordered(self) -> Self:
        if self.min_sigma_px > self.max_sigma_px:
            raise ValueError(f"min_sigma_px {self.min_sigma_px} is above max_sigma_px {self.max_sigma_px}")
        return self


class SharpenParams(Section):
    """Unsharp mask: the difference from a slightly blurred crop is added."""

    probability: Probability
    """Share of the crops it is applied to; the paper's is 0.3."""
    max_amount: float = Field(ge=0)
    """Greatest multiple of the difference."""
    sigma_px: float = Field(gt=0)
    """Standard deviation of that blur, in crop pixels."""


class ClaheParams(Section):
    """Contrast-limited adaptive histogram equalisation."""

    probability: Probability
    """Share of the crops it is applied to; the paper's is 0.3."""
    max_clip_limit: float = Field(ge=1)
    """Greatest clip limit; the least is 1."""
    num_tiles: int = Field(ge=1)
    """Tiles per crop side."""


class FillWeights(Section):
    """Weights say how often each fill is drawn for an erased crop, relative to the others."""

    black: float = Field(ge=0)
    """All channels 0."""
    mean: float = Field(ge=0)
    """The crop's own mean level in each channel."""
    grey: float = Field(ge=0)
    """One random level in each channel."""
    noise: float = Field(ge=0)
    """A random level in each pixel and channel."""
    tissue: float = Field(ge=0)
    """Tissue of another image of the minibatch at the same place; only with `loss_weights.removal` above 0."""

    @model_validator(mode="after")
    def _one_is_drawn(self) -> Self:
        if self.black + self.mean + self.grey + self.noise + self.tissue == 0:
            raise ValueError("all fills have weight 0: nothing to fill erased pixels with; set at least one above 0")
        return self


class EraseParams(Section):
    """Rectangles of a crop are filled, and their tokens show no anatomy. Not of the paper, which is probability 0."""

    probability: Probability
    """Share of the crops it is applied to."""
    min_side: float = Field(gt=0, lt=1)
    """Least side of a square, as a fraction of the crop's."""
    max_side: float = Field(gt=0, lt=1)
    """Greatest side of a square, as a fraction of the crop's."""
    max_rectangles: int = Field(ge=1, le=4)
    """Most rectangles in a crop; their number is uniform from 1 to this."""
    max_aspect: float = Field(ge=1)
    """Greatest ratio of a rectangle's sides, either way, at the area of the drawn square; 1 for squares."""
    fills: FillWeights
    """Weights of the fills of erased pixels: of one fill alone an encoder learns that fill, of several, absence."""

    @model_validator(mode="after")
    def _sides_are_ordered(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is above max_side {self.max_side}")
        return self


class AugmentParams(Section):
    """Augmentation, drawn for each crop by itself; no step moves a pixel."""

    where: Literal["device", "host"]
    """`device` augments whole batches where the networks are; `host` each crop in the loader's processes. What is drawn
    is the same, and so are the crops but for single grey levels. Rectangles are erased on the batch either way."""
    brightness_contrast: BrightnessContrastParams
    """Factor on the deviations from the mean, and an offset."""
    blur: BlurParams
    """A Gaussian blur."""
    sharpen: SharpenParams
    """The image beyond its own blur."""
    clahe: ClaheParams
    """Contrast-limited adaptive histogram equalisation."""
    erase: EraseParams
    """Rectangles of a crop that are filled; not of the paper."""


class RandomViewsParams(Section):
    """The two views of the objective `dino`: square crops of the canvas, drawn independently."""

    min_area: float = Field(gt=0, le=1)
    """Least area of a view, as a fraction of the canvas."""
    max_area: float = Field(gt=0, le=1)
    """Greatest area of a view, as a fraction of the canvas."""

    @model_validator(mode="after")
    def _areas_are_ordered(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} is above max_area {self.max_area}")
        return self


class CentredViewsParams(Section):
    """The views of the objective `ace_v2` in its epochs of uniqueness: square crops with one centre."""

    sides: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=2)
    """Side of each view as a fraction of the canvas's, largest first; the largest decides how far the centre moves."""
    num_teacher_views: int = Field(ge=1)
    """Number of them, the largest, that the teacher sees; the student sees all."""

    @model_validator(mode="after")
    def _teacher_sees_the_largest(self) -> Self:
        if list(self.sides) != sorted(self.sides, reverse=True):
            raise ValueError(f"sides are {list(self.sides)}; give them from the largest to the smallest")
        if self.num_teacher_views > len(self.sides):
            raise ValueError(f"num_teacher_views is {self.num_teacher_views} and sides has {len(self.sides)} views")
        return self


class ViewsParams(Section):
    """Views without a grid; the objective `ace` has none."""

    random: RandomViewsParams
    """Two views at independent places, for `dino`."""
    centred: CentredViewsParams
    """Views with one centre, for the epochs of uniqueness of `ace_v2`."""
