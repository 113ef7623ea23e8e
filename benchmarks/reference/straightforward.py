"""ACE's training step as one would write it first, for `benchmarks/step.py` to compare with.

The same method, losses, sizes and update rules; `tests/benchmarks` holds its loss and its weights after several steps
to ours. What is plain about it:

- the dense targets of every sample come from Python loops over its tokens with a numpy window each (`targets.py`);
  a trainer would run them in its loader's processes, which on the CPU share the cores with the step;
- coarse and fine crops go through the networks one after the other;
- Composer and Decomposer are applied to both of the student's crops, though a loss uses one of each;
- the last layer is torch's `weight_norm` with its gain fixed at 1;
- losses are written as their formulas, one term at a time, and the loss is read back every step to see if it is finite;
- AdamW with torch's defaults, and the teacher's average as a loop over parameters.

It knows one (k, l), nothing erased and so no removal term. It is not slowed down on purpose: the backbone is timm's,
the head's layers and the local losses are batched multiplications, and nothing but what stands above is computed twice.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ace.data.batches import PairBatch
from ace.models.networks import Student
from ace.pretrain.params import PretrainParams

from .targets import looped_composition, looped_decomposition


class PlainHeads(nn.Module):
    """Backbone and heads of one network; the weights are copies of the student's."""

    def __init__(self, student: Student, scale: tuple[int, int]) -> None:
        super().__init__()
        name = "{}x{}".format(*scale)
        self.backbone = copy.deepcopy(student.backbone)
        self.mlp = copy.deepcopy(student.global_head.mlp)
        self.last_layer = weight_norm(copy.deepcopy(student.global_head.last_layer))
        self.last_layer.parametrizations.weight.original0.data.fill_(1.0)
        self.last_layer.parametrizations.weight.original0.requires_grad = False
        self.local_head = copy.deepcopy(student.local_head)
        self.composer = copy.deepcopy(student.composers[name])
        self.decomposer = copy.deepcopy(student.decomposers[name])

    def forward(self, crops: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """Prototype logits of the overlap and local tokens [batch, t, t, dim] of one kind of crop."""
        tokens = self.backbone(crops)
        inside = overlap.to(tokens.dtype)[:, :, None]
        pooled = (tokens.flatten(1, 2) * inside).sum(1) / inside.sum(1).clamp_min(1)
        logits = self.last_layer(F.normalize(self.mlp(pooled), dim=-1))
        return logits, self.local_head(tokens)


class Straightforward:
    """A trainer whose `step` does what ours does."""

    def __init__(self, student: Student, params: PretrainParams, *, t: int, scale: tuple[int, int]) -> None:
        """Start from copies of the student's weights.

        Args:
            student: All three branches are on and the matching logits are fixed.
            params: Section `pretrain`.
            t: Tokens per crop side.
            scale: The one (k, l).
        """
        device = next(student.parameters()).device
        self.params, self.t, self.scale = params, t, scale
        self.student = PlainHeads(student, scale).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.student.train()
        self.center = torch.zeros(params.global_head.out_dim, device=device)
        exempt = getattr(self.student.backbone.model, "no_weight_decay", set)()
        trainable = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        decayed = {n for n, p in trainable.items() if p.ndim > 1 and n.removeprefix("backbone.model.") not in exempt}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for name, p in trainable.items() if name in decayed]},
                {"params": [p for name, p in trainable.items() if name not in decayed]},
            ],
            betas=(params.beta1, params.beta2),
        )

    def step(
        self, batch: PairBatch, *, lr: float, weight_decay: float, momentum: float, precision: torch.dtype
    ) -> None:
        """One update of student, teacher and centre."""
        for group, decay in zip(self.optimizer.param_groups, (weight_decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        with torch.autocast(self.center.device.type, dtype=precision, enabled=precision != torch.float32):
            loss, teacher_logits = self.loss(batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.params.clip_norm)
        self.optimizer.step()
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.data.mul_(momentum).add_((1 - momentum) * theirs.detach().data)
        for ours, theirs in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            ours.data.copy_(theirs)
        kept = self.params.global_loss.center_momentum
        self.center = self.center * kept + teacher_logits.float().mean(0) * (1 - kept)

    def loss(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The total loss, and the teacher's logits of both crops."""
        weights, matching = self.params.loss_weights, self.params.matching_loss
        device = self.center.device
        decomposition, composition, overlap_fine, overlap_coarse = (
            torch.stack(parts).to(device) for parts in zip(*self._targets(batch), strict=True)
        )
        coarse, fine = batch.whole()
        with torch.no_grad():
            teacher_coarse, teacher_coarse_tokens = self.teacher(coarse, overlap_coarse)
            teacher_fine, teacher_fine_tokens = self.teacher(fine, overlap_fine)
        student_coarse, student_coarse_tokens = self.student(coarse, overlap_coarse)
        student_fine, student_fine_tokens = self.student(fine, overlap_fine)
        sampled = [
            F.normalize(module(tokens).flatten(1, 2), dim=-1)
            for tokens in (student_coarse_tokens, student_fine_tokens)
            for module in (self.student.decomposer, self.student.composer)
        ]
        decomposed_coarse, _, _, composed_fine = sampled
        loss_global = (
            self._cross_entropy(teacher_coarse, student_fine) + self._cross_entropy(teacher_fine, student_coarse)
        ) / 2
        loss_decomposition = self._matching(
            teacher_fine_tokens, decomposed_coarse, decomposition, matching.alpha_decomposition
        )
        loss_composition = self._matching(teacher_coarse_tokens, composed_fine, composition, matching.alpha_composition)
        total = (
            weights.global_ * loss_global
            + weights.decomposition * loss_decomposition
            + weights.composition * loss_composition
        )
        return total, torch.cat([teacher_coarse, teacher_fine])

    def _targets(self, batch: PairBatch) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per sample: both dense targets, and the overlaps, which are the rows that have a match."""
        samples = []
        for coarse, fine in zip(batch.coarse_origin.tolist(), batch.fine_origin.tolist(), strict=True):
            decomposition = torch.from_numpy(looped_decomposition(coarse, fine, self.t, *self.scale))
            composition = torch.from_numpy(looped_composition(coarse, fine, self.t, *self.scale))
            samples.append((decomposition, composition, decomposition.amax(1) > 0, composition.amax(1) > 0))
        return samples

    def _cross_entropy(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        temperatures = self.params.global_loss
        p = F.softmax((teacher_logits.float() - self.center) / temperatures.teacher_temperature, dim=-1)
        log_q = F.log_softmax(student_logits.float() / temperatures.student_temperature, dim=-1)
        return torch.sum(-p * log_q, dim=-1).mean()

    def _matching(self, teacher_tokens: Tensor, student_tokens: Tensor, target: Tensor, alpha: float) -> Tensor:
        logits = self.params.matching_loss.logits
        cosines = teacher_tokens.flatten(1, 2) @ student_tokens.transpose(1, 2)
        bce = F.binary_cross_entropy_with_logits(
            (logits.scale * cosines + logits.bias).float(), target, reduction="none"
        )
        return ((alpha * target + (1 - alpha) * (1 - target)) * bce).mean()
