"""Parameters of the stage `pretrain`."""

from typing import Literal

from pydantic import Field, model_validator

from ace.data.objectives import Objective
from ace.data.params import AugmentParams, ViewsParams
from ace.engine.params import TrainingParams
from ace.models.params import (
    BackboneParams,
    GlobalHeadParams,
    LocalHeadParams,
    LogitParams,
    PartForm,
    Sha256,
    WholeForm,
)
from ace.pretrain.monitor_params import CollapseParams, ProbeParams
from shards.core.config import Section


class LossWeights(Section):
    """Weights of the terms of the total loss; 0 switches a term off (its computation too)."""

    global_: float = Field(ge=0, alias="global")
    """Global consistency over the overlap (sec. 3.2), or of views; the authors use 0.1."""
    decomposition: float = Field(ge=0)
    """Decomposition matching (sec. 3.3); the authors use 0.5."""
    composition: float = Field(ge=0)
    """Composition matching (sec. 3.3); the authors use 0.5."""
    removal: float = Field(ge=0)
    """Removal: erasing a part of a crop subtracts that part's tokens and nothing else (docs/method.md). Above 0 the
    teacher sees whole crops, and `augment.erase.probability` has to be above 0 too; the paper's method is 0."""

    @model_validator(mode="after")
    def _one_term_is_on(self) -> "LossWeights":
        if self.global_ + self.decomposition + self.composition == 0:
            raise ValueError(
                f"loss_weights of global, decomposition and composition are all 0 (removal is {self.removal:g}), so no "
                "term would tell regions apart; set at least one of the three above 0"
            )
        return self


class GlobalLossParams(Section):
    """Global consistency: cross-entropy between sharpened, centred teacher and student distributions."""

    student_temperature: float = Field(gt=0)
    """The student's logits are divided by it before the softmax."""
    teacher_temperature: float = Field(gt=0)
    """Temperature at the end of its warm-up."""
    teacher_temperature_start: float = Field(gt=0)
    """Temperature at step 0; equal to `teacher_temperature` for no warm-up."""
    teacher_temperature_warmup_epochs: float = Field(ge=0)
    """Epochs in which the teacher's temperature goes linearly from its start to its end."""
    center_momentum: float = Field(ge=0, le=1)
    """Part of the teacher's centre that stays at a step; the rest is the minibatch's mean."""
    frozen_last_layer_epochs: float = Field(ge=0)
    """Epochs in which the last layer of the global head gets no gradient."""


class MatchingLossParams(Section):
    """Balanced binary cross-entropy between matching matrices and their Gaussian targets."""

    alpha_decomposition: float = Field(gt=0, lt=1)
    """Weight of matching pairs in the decomposition term; pairs that do not match have 1 − this."""
    alpha_composition: float = Field(gt=0, lt=1)
    """Weight of matching pairs in the composition term; pairs that do not match have 1 − this."""
    logits: LogitParams
    """How similarities of tokens become logits."""


class WhiteningParams(Section):
    """The section says how the map of the finished encoder's tokens is fitted."""

    num_pairs: int = Field(ge=1)
    """Crop pairs of training images that it is fitted on, rounded up to whole batches of 16 (of `batch_size` where that
    is less); at most as many as the run trained on."""
    shrinkage: float = Field(gt=0, le=1)
    """Part of the error's second moment that is taken as equal in all directions; 1 leaves tokens as they are."""


class PretrainParams(TrainingParams):
    """Section `pretrain` of params.yaml."""

    seed: int = Field(ge=0)
    """Seed of the first weights, the order of the images, their crops and their augmentation."""
    momentum: float = Field(ge=0, le=1)
    """Teacher momentum at step 0; a cosine takes it to `momentum_end`."""
    momentum_end: float = Field(ge=0, le=1)
    """Teacher momentum at the last step."""
    backbone: BackboneParams
    """The network that turns a crop into tokens, and its first weights."""
    global_head: GlobalHeadParams
    """The head that the global term is computed behind."""
    local_head: LocalHeadParams
    """The head that the matching terms are computed behind."""
    composer: WholeForm
    """Composer: makes one coarse token of k*l fine ones."""
    decomposer: PartForm
    """Decomposer: makes k*l fine tokens of one coarse one."""
    objective: Objective
    """`ace` is the paper's; `dino` is the baseline: two views without grid, the global term alone; `ace_v2` cycles by
    epoch through uniqueness (views with one centre), consistency (pairs of (k, l) = (1, 1)) and composition and
    decomposition (pairs of the grid's other scales)."""
    views: ViewsParams
    """Crops of the objectives that do without the grid."""
    loss_weights: LossWeights
    """Weight of each term of the loss; 0 leaves it out."""
    global_loss: GlobalLossParams
    """Temperatures and centre of the global term."""
    matching_loss: MatchingLossParams
    """Balance and logits of the composition and the decomposition term."""
    crops: Literal["fresh", "bank"]
    """`fresh` draws new crop pairs every epoch; `bank` uses the pairs stored with each sample."""
    augment: AugmentParams
    """Changes of grey levels, and erased rectangles."""
    probe: ProbeParams
    """Measurements during training on images that nothing is trained on."""
    collapse: CollapseParams
    """Bounds at which a collapsing training is named, or ended."""
    whitening: WhiteningParams | None = None
    """A linear map of tokens, fitted after the last step and part of the finished encoder; null for none, as the paper
    has it (docs/method.md)."""
    start_from: str | None
    """Folder of a finished model whose backbone and heads, student's and teacher's, training starts with; null for
    random ones (or `backbone.weights`). Optimiser and schedules start anew: this is not how a run is resumed."""
    start_from_sha256: Sha256 | None = None
    """Digest of that model's weights, which `python -m ace config check` prints; a stage of DVC needs it, so that other
    weights in the same folder make the training stale. Not needed in a run of one's own."""
    accept_mixed_images: bool = False
    """Train on batches of several kinds of pictures (chest and fundus, grey and coloured ones) at once."""
    compile: bool
    """Compile both backbones with torch.compile: faster steps after minutes of compilation."""
    checkpoint_activations: bool
    """Compute the student backbone's activations again in the backward pass, to save memory."""

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> "PretrainParams":
        if self.start_from is None and self.start_from_sha256 is not None:
            raise ValueError(
                f"start_from_sha256 is {self.start_from_sha256}, but start_from is null; set both of them or neither"
            )
        if self.start_from is not None and self.backbone.weights is not None:
            raise ValueError(
                f"start_from is {self.start_from} and backbone.weights is set too; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _objective_has_what_it_needs(self) -> "PretrainParams":
        if self.objective != "ace" and self.loss_weights.global_ == 0:
            raise ValueError(
                f"objective is {self.objective} and loss_weights.global 0: views have the global term alone; set it "
                "above 0"
            )
        if self.objective != "ace" and self.crops == "bank":
            raise ValueError(
                f"objective is {self.objective} and crops is bank: shards store crop pairs on the grid, not its views; "
                "set crops to fresh"
            )
        return self

    @model_validator(mode="after")
    def _something_is_erased(self) -> "PretrainParams":
        if self.loss_weights.removal > 0 and self.augment.erase.probability == 0:
            raise ValueError(
                f"loss_weights.removal is {self.loss_weights.removal:g} and augment.erase.probability 0: nothing is "
                "taken out of any crop; set the probability above 0, or the weight to 0"
            )
        erase = self.augment.erase
        if self.loss_weights.removal == 0 and erase.probability > 0 and erase.fills.tissue > 0:
            raise ValueError(
                f"augment.erase.fills.tissue is {erase.fills.tissue:g} and loss_weights.removal 0: no other term says "
                "what another image's tissue adds; set the fill's weight to 0, or the term's above 0"
            )
        return self
