"""Parameters of what watches a training: collapse thresholds and the online probe."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from shards.core.config import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class CollapseParams(Section):
    """Bounds outside of which a warning says that the encoder may be collapsing; training goes on."""

    min_feature_std: float = Field(ge=0)
    """Least `feature_std`: 1 is isotropic, 0 one point for every image; 0 never warns."""
    min_rank_fraction: Fraction
    """Least `rank_fraction`: the effective rank over the most there can be, min(crops - 1, width); 0 never warns.

    The rank grows more slowly than the batch: for hundreds of crops a lower fraction is right.
    """
    min_entropy_fraction: Fraction
    """Least `teacher_entropy` as a fraction of log(out_dim), at which it is uniform; 0 never warns."""
    max_entropy_fraction: Fraction
    """Greatest `teacher_entropy` as a fraction of log(out_dim); 1 never warns."""
    patience_rows: int = Field(ge=1)
    """Logged rows in succession that must be out of bounds before it is said."""

    @model_validator(mode="after")
    def _entropies_are_ordered(self) -> Self:
        if self.min_entropy_fraction >= self.max_entropy_fraction:
            raise ValueError(
                f"min_entropy_fraction {self.min_entropy_fraction} is not below "
                f"max_entropy_fraction {self.max_entropy_fraction}: every row would be out of bounds"
            )
        return self


class ProbeParams(Section):
    """kNN and a linear probe on labelled shards while training: how well frozen features tell findings apart."""

    every_epochs: int = Field(ge=0)
    """Epochs between two probes; 0 switches them off."""
    k: int = Field(ge=1)
    """Neighbours that vote, at most as many as training images know the label."""
    temperature: float = Field(gt=0)
    """Temperature of the votes' weights exp(cosine / temperature); DINO's is 0.07."""
    linear_l2: float = Field(gt=0)
    """λ of the linear probe: mean cross-entropy + λ/2·|w|², on standardised features."""
    max_train_images: int = Field(ge=1)
    """Training images to vote and to fit on, whole patients drawn at random."""
    max_val_images: int = Field(ge=1)
    """Validation images to score."""
    min_positives: int = Field(ge=1)
    """A label counts if at least so many validation images have it and as many have it not."""
    images_per_forward: int = Field(ge=1)
    """Images in one forward pass."""
    labels: tuple[str, ...] | None
    """Labels to score; null for all there are."""
