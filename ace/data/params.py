"""Parameters of views and augmentation: parts of the section `pretrain` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import Section

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


class EraseParams(Section):
    """A square set to black; its tokens match no anatomy. Not of the paper, which is probability 0."""

    probability: Probability
    """Share of the crops it is applied to."""
    min_side: float = Field(gt=0, lt=1)
    """Least side of the square, as a fraction of the crop's."""
    max_side: float = Field(gt=0, lt=1)
    """Greatest side of the square, as a fraction of the crop's."""

    @model_validator(mode="after")
    def _sides_are_ordered(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is above max_side {self.max_side}")
        return self


class AugmentParams(Section):
    """Augmentation, drawn for each crop by itself; no step moves a pixel."""

    where: Literal["device", "host"]
    """`device` augments whole batches where the networks are; `host` each crop in the loader's processes. What is drawn
    is the same, and so are the crops but for single grey levels."""
    brightness_contrast: BrightnessContrastParams
    blur: BlurParams
    sharpen: SharpenParams
    clahe: ClaheParams
    erase: EraseParams


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
    """How many of them, the largest, the teacher sees; the student sees all."""

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
    centred: CentredViewsParams
