"""Parameters that every training has: its optimiser, its length, and how it is carried out."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ace.models.params import Precision
from shards.core.config import Section


class OptimizerParams(Section):
    """AdamW with warm-up and cosine decay."""

    base_lr: float = Field(gt=0)
    """Learning rate at a global batch of 256; the peak in use is `base_lr * batch_size / 256`."""
    min_lr: float = Field(ge=0)
    """Learning rate at the last step."""
    warmup_epochs: float = Field(ge=0)
    """Epochs in which the learning rate rises linearly from 0 to its peak; fractions count."""
    weight_decay: float = Field(ge=0)
    """Weight decay at step 0, of matrices and kernels (`ace.engine.optimizer`); a cosine takes it to
    `weight_decay_end`."""
    weight_decay_end: float = Field(ge=0)
    """Weight decay at the last step."""
    clip_norm: float = Field(gt=0)
    """Largest global gradient norm."""
    beta1: float = Field(ge=0, lt=1)
    """AdamW's decay of the running mean of the gradient."""
    beta2: float = Field(ge=0, lt=1)
    """AdamW's decay of the running mean of the squared gradient."""


class TrainingParams(OptimizerParams):
    """The part of a training's section that the engine reads."""

    epochs: int = Field(ge=1)
    """Passes over the training images; all schedules end with the last one."""
    batch_size: int = Field(ge=2)
    """Images per optimiser step, over all ranks."""
    precision: Precision
    """Precision of the matrix products inside backbone and heads. Weights, averages, pooled tokens, logits, losses and
    monitors are fp32. fp16 scales the loss. `tf32` is fp32, of which an accelerator may round the factors of every
    product; on the CPU it is fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that a run is computed on: `cuda` refuses to begin without an accelerator, `auto` takes one if torch sees
    one, else the CPU. `--device` wins over it."""
    num_micro_batches: int = Field(ge=1)
    """Parts in which a process takes its share of the batch, to save memory; their gradients add up."""
    on_nonfinite: Literal["stop", "skip"]
    """Action when loss or gradient is not finite: the batch is saved for inspection, then the run ends or the
    step is left out."""
    max_skipped_steps: int = Field(ge=1)
    """With `skip`: steps left out one after another at which the run ends all the same."""
    num_workers: int = Field(ge=0)
    """Loader processes of each training process; 0 loads in the training process."""
    log_every_steps: int = Field(ge=1)
    """Optimiser steps between two lines of the log."""
    checkpoint_every_s: float = Field(ge=0)
    """Seconds between resumable checkpoints; 0 writes one after every step."""
    keep_checkpoints: int = Field(ge=1)
    """Number of the newest checkpoints that stay; the best by the probe stays besides."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} and epochs {self.epochs}: warm-up must be shorter"
            )
        return self

    @property
    def lr(self) -> float:
        """Peak learning rate: `base_lr` scaled linearly to this batch size."""
        return self.base_lr * self.batch_size / 256
