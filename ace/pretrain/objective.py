"""The total loss of one batch as a sum of named terms (docs/method.md).

Of crop pairs: `L = w_g·L_g + w_d·L_dec + w_c·L_com + w_r·L_removal`. Of views: `L = w_g·L_views + w_r·L_removal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.data.batches import PairBatch, ViewBatch
from ace.geometry.overlap import overlap_masks
from ace.losses.consistency import center_sum, view_consistency
from ace.losses.removal import removal_error, removal_sums, teacher_energy
from ace.models.networks import Branches, Student, StudentOutputs, Teacher, TeacherOutputs
from ace.models.params import Precision
from ace.models.precision import in_precision
from ace.pretrain.objective_local import LocalObjective
from ace.pretrain.params import GlobalLossParams, LossWeights, PretrainParams

Masks = Sequence[Bool[Tensor, "batch tokens"]]


@dataclass(frozen=True)
class BatchTotals:
    """Totals divide the terms of a micro-batch: sums over all micro-batches and ranks, over the number of ranks.

    Where there is nothing to divide they are 0.

    Attributes:
        num_valid: Samples of the global term: those with a token to pool in both crops, or in every view. Of fewer than
            ranks it is a fraction.
        teacher_energy: Squared length of the teacher's tokens of all crops with something erased.
    """

    num_valid: Float[Tensor, ""]
    teacher_energy: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Loss of one micro-batch with its parts.

    Attributes:
        loss: This micro-batch's part of what is minimised.
        terms: Named parts and accuracies, detached; those of a step's micro-batches add up, ranks are averaged.
        center_sum: Sum of the teacher's global logits and how many rows it has; None without the global branch.
        removal_sums: `ace.losses.removal.removal_sums` in the order of its fields; None if they are not measured.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    center_sum: tuple[Tensor, Tensor] | None
    removal_sums: Float[Tensor, " sums"] | None


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """A step context holds what the losses of one step share beside the networks' outputs.

    Attributes:
        center: Running mean of the teacher's global logits.
        teacher_temperature: Divides the teacher's centred logits in this step.
        scales: The plain student, whose matching scales and biases the losses use.
        totals: Of the whole batch, over all micro-batches and ranks, divided by the number of ranks.
        share: A micro-batch's part of the rank's samples.
        is_measured: Whether to measure accuracies, excesses and sums for monitors, which only the log wants.
    """

    center: Float[Tensor, " out"]
    teacher_temperature: float
    scales: Student
    totals: BatchTotals
    share: float = 1.0
    is_measured: bool = True


def branches_of(params: PretrainParams) -> Branches:
    """Return the branches with a weight above 0; `dino`, which has no pairs, has the global one and removal alone."""
    weights = params.loss_weights
    if params.objective == "dino":
        return Branches(global_=True, decomposition=False, composition=False, removal=weights.removal > 0)
    return Branches(
        global_=weights.global_ > 0,
        decomposition=weights.decomposition > 0,
        composition=weights.composition > 0,
        removal=weights.removal > 0,
    )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The total loss of a training; built once a run.

    Attributes:
        weights: Weights of its terms.
        global_loss: Parameters of the global term.
        local: The matching terms.
        precision: Of the networks.
        t: Tokens per crop side.
    """

    weights: LossWeights
    global_loss: GlobalLossParams
    local: LocalObjective
    precision: Precision
    t: int

    @classmethod
    def of(cls, params: PretrainParams, t: int) -> "Objective":
        """Make the objective of the section `pretrain`, for crops of t tokens a side."""
        local = LocalObjective(params.loss_weights, params.matching_loss, t)
        return cls(
            weights=params.loss_weights, global_loss=params.global_loss, local=local, precision=params.precision, t=t
        )

    @property
    def is_whole(self) -> bool:
        """Tell whether the teacher sees whole crops, as the removal term needs, rather than what the student sees."""
        return self.weights.removal > 0

    def teach(self, teacher: Teacher, batch: PairBatch | ViewBatch) -> TeacherOutputs:
        """Run the teacher on one micro-batch, crop pairs or views on its device."""
        crops = batch.whole() if self.is_whole else batch.seen()
        num_taught = batch.num_teacher_views if isinstance(batch, ViewBatch) else len(crops)
        pooled = _pooled(batch, self.t, is_whole=self.is_whole)[:num_taught]
        with in_precision(self.precision, batch.mean.device):
            outputs: TeacherOutputs = teacher(crops[:num_taught], pooled, is_pair=isinstance(batch, PairBatch))
        return outputs

    def totals(
        self, batch: PairBatch | ViewBatch, taught: Sequence[TeacherOutputs], num_micro_batches: int
    ) -> BatchTotals:
        """Count the totals of this rank's batch alone.

        Args:
            batch: This rank's whole batch.
            taught: The teacher's outputs on its micro-batches; empty for none, where the removal term is off.
            num_micro_batches: How many there are.
        """
        num_valid = _is_valid(_pooled(batch, self.t)).sum().float()
        energy = num_valid.new_zeros(())
        micro_batches: Sequence[PairBatch | ViewBatch] = batch.split(num_micro_batches) if taught else ()
        for micro_batch, outputs in zip(micro_batches, taught, strict=True):
            if outputs.tokens is not None:
                energy = energy + teacher_energy(outputs.tokens.flatten(0, 1), _shown(micro_batch, len(outputs.tokens)))
        return BatchTotals(num_valid, energy)

    def loss(
        self, student: nn.Module, batch: PairBatch | ViewBatch, taught: TeacherOutputs, context: StepContext
    ) -> StepResult:
        """Run the student on one micro-batch, and compute every term that is switched on.

        The losses of a rank's micro-batches, added up and averaged over the ranks, are the loss of the whole batch.

        Args:
            student: The student, or its DDP wrapper.
            batch: Crop pairs or views on the networks' device.
            taught: What `teach` returned for them.
            context: Of the step.
        """
        pooled, is_pair = _pooled(batch, self.t), isinstance(batch, PairBatch)
        scale = (batch.k, batch.l) if isinstance(batch, PairBatch) else None
        with in_precision(self.precision, batch.mean.device):
            out: StudentOutputs = student(batch.seen(), pooled, scale)
        terms: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        center_sums = sums = None
        if out.logits is not None and taught.logits is not None:
            name, valid = "loss_global" if is_pair else "loss_views", _is_valid(pooled)
            total, _ = view_consistency(
                out.logits,
                taught.logits,
                valid,
                context.center,
                student_temperature=self.global_loss.student_temperature,
                teacher_temperature=context.teacher_temperature,
            )
            terms[name] = total / _not_zero(context.totals.num_valid)
            parts.append(self.weights.global_ * terms[name])
            center_sums = center_sum(taught.logits, valid)
        if isinstance(batch, PairBatch):
            weighted, named = self.local.terms(
                batch, out, taught, context.scales, share=context.share, is_measured=context.is_measured
            )
            parts, terms = parts + weighted, terms | named
        if out.tokens is not None and taught.tokens is not None:
            # The student has more views than the teacher has seen; of the others nothing is known.
            num_taught = len(taught.tokens)
            student_tokens, teacher_tokens = out.tokens[:num_taught].flatten(0, 1), taught.tokens.flatten(0, 1)
            shown, inserted = _shown(batch, num_taught), _inserted(batch, taught.tokens)
            error = removal_error(student_tokens, teacher_tokens, shown, inserted)
            terms["loss_removal"] = error / _not_zero(context.totals.teacher_energy)
            parts.append(self.weights.removal * terms["loss_removal"])
            if context.is_measured:
                # The monitors tell what absence leaves; where tissue was put in, nothing is absent.
                is_filled = torch.zeros_like(shown) if inserted is None else _donated(batch, num_taught).float()
                sums = removal_sums(student_tokens, teacher_tokens, torch.maximum(shown, is_filled)).stacked()
        loss = torch.stack(parts).sum()
        detached = {name: value.detach() for name, value in terms.items()}
        return StepResult(
            loss=loss, terms={"loss": loss.detach(), **detached}, center_sum=center_sums, removal_sums=sums
        )


def _not_zero(total: Tensor) -> Tensor:
    """Return a divisor that leaves a sum of nothing at 0.

    The smallest number, not 1: a rank's part of one sample is less, and the energy scales with the tokens.
    """
    return total.clamp_min(torch.finfo(torch.float32).tiny)


def _pooled(batch: PairBatch | ViewBatch, t: int, *, is_whole: bool = False) -> Masks:
    """Tokens whose mean the global head takes: of a pair those in the overlap, of a view all; none of them erased.

    Args:
        batch: Crop pairs or views.
        t: Tokens per crop side.
        is_whole: Take erased tokens too, since the network sees whole crops.
    """
    visible = batch.visible()
    if is_whole:
        visible = [torch.ones_like(mask) for mask in visible]
    if isinstance(batch, ViewBatch):
        return visible
    fine, coarse = overlap_masks(batch.coarse_origin, batch.fine_origin, t=t, k=batch.k, l=batch.l)
    return coarse & visible[0], fine & visible[1]


def _is_valid(pooled: Masks) -> Bool[Tensor, " batch"]:
    return torch.stack([mask.any(1) for mask in pooled]).all(0)


def _shown(batch: PairBatch | ViewBatch, num_crops: int) -> Float[Tensor, "crops*batch tokens"]:
    """Return the first crops as images, one crop of all samples after another."""
    return torch.cat(batch.shown()[:num_crops])


def _inserted(
    batch: PairBatch | ViewBatch, taught: Float[Tensor, "crops batch tokens width"]
) -> Float[Tensor, "crops*batch tokens width"] | None:
    """Return the teacher's tokens of the tissue that fills rectangles, 0 in other crops; None if none has tissue."""
    if batch.donated is None:
        return None
    tokens = taught[:, batch.donors()].flatten(0, 1)
    return torch.where(_donated(batch, len(taught))[..., None], tokens, 0.0)


def _donated(batch: PairBatch | ViewBatch, num_crops: int) -> Bool[Tensor, "crops*batch 1"]:
    assert batch.donated is not None
    return batch.donated[:, :num_crops].T.reshape(-1, 1)
