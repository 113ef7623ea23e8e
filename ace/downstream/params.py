"""Parameters that every task has; `configs/tasks/NAME.yaml` holds them, and what its kind of task adds."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ace.data.params import BrightnessContrastParams, Probability
from ace.engine.params import TrainingParams
from ace.protocol.intervals import BootstrapParams
from shards.core.config import Section

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class ShownParams(Section):
    """Choose the part of an image that is shown, and its changes in training; without them the crop is the middle."""

    crop_side: Share
    """Side of a crop as a share of the canvas's. The paper resizes to 512 px and crops 448: 0.875."""
    max_rotation_deg: float = Field(ge=0, lt=90)
    """Greatest angle that a training image is turned by, either way, in degrees."""
    mirror_probability: Probability
    """Share of the training images that are mirrored left to right; 0 where sides mean something, as in a chest."""
    brightness_contrast: BrightnessContrastParams
    """Change of grey levels in training; images that are measured keep theirs."""


class FinetuneParams(TrainingParams):
    """Sets how the networks of a task are trained: one budget for every encoder, amount of labels and seed."""

    validate_every_epochs: int = Field(ge=1)
    """Epochs between two looks at the validation images; the network of the best one is kept."""
    drop_path: float = Field(ge=0, lt=1)
    """Stochastic depth: how often the last block is left out in training, and earlier ones less. It is the same for
    every encoder, whatever its own training had."""
    patience: int = Field(ge=1)
    """Looks in succession without a better score after which training ends."""


class TaskParams(Section):
    """A task: a shard set, whose patients train, validate and test, and how often it is trained."""

    batch: str = Field(min_length=1)
    """Name of the shard set."""
    split: Literal["test", "val"]
    """Split whose patients are measured at the end, once: `test` for results; `val` to choose settings by."""
    val_share: float = Field(ge=0, lt=1)
    """Share of the training patients that validate instead of training, for sets without a validation split or with a
    small one; 0 takes the set's own split `val`."""
    accept_shared_images: bool
    """Measure although an encoder may have been trained on the measured patients (docs/register.md)."""
    fractions: tuple[Share, ...]
    """Shares of the training patients that are trained on; those of a smaller share are among those of a larger one."""
    shots: tuple[Count, ...]
    """Images of each class that are trained on, each of another patient; a smaller number's are among a larger's."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Each training is repeated with these seeds, of the patients drawn, their order, and first weights of the head."""
    shown: ShownParams
    """The part of an image that a network sees, and its changes in training."""
    training: FinetuneParams
    """Optimiser, schedule and early stopping, the same for every encoder."""
    bootstrap: BootstrapParams
    """Number of resamples and level of the figures' intervals."""
    num_examples: int = Field(ge=1)
    """Images of each kind (best, median, worst) that the page shows of an encoder."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not self.fractions and not self.shots:
            raise ValueError("fractions and shots are both empty: nothing would be trained; give one of them a value")
        return self
