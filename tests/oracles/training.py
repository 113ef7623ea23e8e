"""A training run written plainly in float64: one sample at a time, AdamW, clipping, schedules and averages by hand.

Of the code under test it shares the network's modules, nothing else: no batched loss, geometry, optimiser or schedule.
"""

import copy
import math

import numpy as np
import torch
from torch import Tensor

from tests.oracles import overlap, targets


class ReferenceRun:
    """Student, teacher and centre after some steps."""

    def __init__(self, student, teacher, center: Tensor, params, *, t: int, num_steps: int, steps_per_epoch: int):
        self.student, self.teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
        self.center, self.params, self.t = center.double(), params, t
        self.num_steps, self.steps_per_epoch, self.number = num_steps, steps_per_epoch, 0
        self.moments: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.grad_norm = 0.0

    def step(self, batch) -> float:
        """One step; returns the loss before it."""
        params, progress = self.params, self.number / (self.num_steps - 1)
        warmup = round(params.warmup_epochs * self.steps_per_epoch)
        peak = params.base_lr * params.batch_size / 256
        after = (self.number - warmup) / max(self.num_steps - warmup - 1, 1)
        lr = peak * (self.number + 1) / warmup if self.number < warmup else self._cosine(peak, params.min_lr, after)
        weight_decay = self._cosine(params.weight_decay, params.weight_decay_end, progress)
        momentum = self._cosine(params.momentum, params.momentum_end, progress)
        loss, teacher_rows = self._loss(batch)
        self.student.zero_grad(set_to_none=True)
        loss.backward()
        self._move(lr, weight_decay)
        theirs = dict(self.student.named_parameters())
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.copy_(momentum * parameter + (1 - momentum) * theirs[name])
        if teacher_rows:
            keep = params.global_loss.center_momentum
            self.center = keep * self.center + (1 - keep) * torch.stack(teacher_rows).mean(0)
        self.number += 1
        return loss.item()

    @staticmethod
    def _cosine(start: float, end: float, progress: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

    def _temperature(self) -> float:
        loss = self.params.global_loss
        warmup = round(loss.teacher_temperature_warmup_epochs * self.steps_per_epoch)
        share = min(self.number / warmup, 1.0) if warmup else 1.0
        return loss.teacher_temperature_start * (1 - share) + loss.teacher_temperature * share

    def _move(self, lr: float, weight_decay: float) -> None:
        """Clip the gradients' common norm, then AdamW; what has no gradient counts as 0, a frozen layer as absent."""
        params = self.params
        is_frozen = self.number < params.global_loss.frozen_last_layer_epochs * self.steps_per_epoch
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.student.named_parameters()
            if p.requires_grad and not (is_frozen and name == "global_head.last_layer.weight")
        }
        self.grad_norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        factor = min(params.clip_norm / (self.grad_norm + 1e-6), 1.0)
        for name, parameter in self.student.named_parameters():
            if name not in gradients:
                continue
            gradient, zero = factor * gradients[name], torch.zeros_like(parameter)
            count, first, second = self.moments.get(name, (0, zero, zero))
            first = params.beta1 * first + (1 - params.beta1) * gradient
            second = params.beta2 * second + (1 - params.beta2) * gradient**2
            count += 1
            self.moments[name] = count, first, second
            mean, square = first / (1 - params.beta1**count), second / (1 - params.beta2**count)
            decay = weight_decay if self._is_decayed(name) else 0.0
            with torch.no_grad():
                parameter.copy_((1 - lr * decay) * parameter - lr * mean / (square.sqrt() + 1e-8))

    @staticmethod
    def _is_decayed(name: str) -> bool:
        """Weights of linear layers and of the patch embedding; not those of norms, not position embeddings."""
        *_, layer, last = name.split(".")
        return last == "weight" and not layer.startswith("norm")

    def _loss(self, batch) -> tuple[Tensor, list[Tensor]]:
        """Mean over the samples of each term, weighted; and the teacher's logits of every valid crop."""
        is_views = hasattr(batch, "views")
        self.removed: list[tuple[Tensor, Tensor]] = []
        samples = [self._views(batch, i) if is_views else self._pair(batch, i) for i in range(len(batch.keys))]
        weights = self.params.loss_weights
        crosses = [cross for cross, _, _ in samples if cross is not None]
        loss = weights.global_ * sum(crosses) / max(len(crosses), 1)
        loss = loss + sum(local for _, local, _ in samples) / len(samples)
        if self.is_whole and self.removed:
            errors, energies = zip(*self.removed, strict=True)
            loss = loss + weights.removal * sum(errors) / sum(energies)
        return loss, [row for _, _, rows in samples for row in rows]

    def _cross_entropy(self, taught: Tensor, logits: Tensor) -> Tensor:
        p = torch.exp((taught - self.center) / self._temperature())
        q = torch.exp(logits / self.params.global_loss.student_temperature)
        return -((p / p.sum()) * torch.log(q / q.sum())).sum()

    @property
    def is_whole(self) -> bool:
        """Tell whether the teacher sees whole crops, which it does with the removal term."""
        return self.params.loss_weights.removal > 0

    def _remove(self, tokens: Tensor, taught: Tensor, shown: Tensor) -> None:
        """Note the error and the energy of one crop with something erased."""
        if all(share == 1 for share in shown.tolist()):
            return
        error, energy = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for token, whole, share in zip(tokens.flatten(0, 1), taught.flatten(0, 1), shown.tolist(), strict=True):
            for x, y in zip(token, whole, strict=True):
                error, energy = error + (x - share * y) ** 2, energy + y**2
        self.removed.append((error, energy))

    @staticmethod
    def _pixels(batch, crop: Tensor, i: int) -> Tensor:
        return ((crop.double() / 255 - batch.mean[i].double()) / batch.std[i].double())[None]

    @staticmethod
    def _head(network, tokens: Tensor, inside: np.ndarray) -> Tensor:
        rows = [tokens.flatten(0, 1)[number] for number in np.flatnonzero(inside)]
        return network.global_head(torch.stack(rows).mean(0)[None])[0]

    def _views(self, batch, i: int) -> tuple[Tensor | None, float, list[Tensor]]:
        visible = batch.view_shown[i].numpy() > 0.5
        seen = [self._pixels(batch, view, i) for view in batch.erased[i]]
        whole = [self._pixels(batch, view, i) for view in batch.views[i]]
        tokens = [self.student.backbone(pixels)[0] for pixels in seen]
        with torch.no_grad():
            taught_tokens = [
                self.teacher.backbone((whole if self.is_whole else seen)[a])[0] for a in range(batch.num_teacher_views)
            ]
        for a, whole_tokens in enumerate(taught_tokens):
            self._remove(tokens[a], whole_tokens, batch.view_shown[i, a])
        if not visible.any(1).all():
            return None, 0.0, []
        pooled = np.ones_like(visible) if self.is_whole else visible
        with torch.no_grad():
            taught = [self._head(self.teacher, of_view, pooled[a]) for a, of_view in enumerate(taught_tokens)]
        logits = [self._head(self.student, of_view, visible[b]) for b, of_view in enumerate(tokens)]
        terms = [self._cross_entropy(p, q) for a, p in enumerate(taught) for b, q in enumerate(logits) if a != b]
        return sum(terms) / len(terms), 0.0, taught

    def _pair(self, batch, i: int) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        k, l, t, weights = batch.k, batch.l, self.t, self.params.loss_weights
        origins = tuple(batch.coarse_origin[i].tolist()), tuple(batch.fine_origin[i].tolist())
        visible_coarse, visible_fine = (shown[i].numpy() > 0.5 for shown in (batch.coarse_shown, batch.fine_shown))
        inside_fine, inside_coarse = overlap.overlap_masks(*origins, t, k, l)
        whole = self._pixels(batch, batch.coarse[i], i), self._pixels(batch, batch.fine[i], i)
        seen = [self._pixels(batch, crop, i) for crop in batch.erased[i]]
        coarse, fine = (self.student.backbone(crop) for crop in seen)
        with torch.no_grad():
            taught_coarse, taught_fine = (self.teacher.backbone(crop) for crop in (whole if self.is_whole else seen))
        self._remove(coarse[0], taught_coarse[0], batch.coarse_shown[i])
        self._remove(fine[0], taught_fine[0], batch.fine_shown[i])
        cross, rows = None, []
        seen_coarse, seen_fine = inside_coarse & visible_coarse, inside_fine & visible_fine
        if seen_coarse.any() and seen_fine.any():
            of_coarse, of_fine = (inside_coarse, inside_fine) if self.is_whole else (seen_coarse, seen_fine)
            with torch.no_grad():
                rows = [
                    self._head(self.teacher, taught_coarse[0], of_coarse),
                    self._head(self.teacher, taught_fine[0], of_fine),
                ]
            to_fine = self._cross_entropy(rows[0], self._head(self.student, fine[0], seen_fine))
            to_coarse = self._cross_entropy(rows[1], self._head(self.student, coarse[0], seen_coarse))
            cross = (to_fine + to_coarse) / 2
        parts, wholes = self.student.local_head(coarse), self.student.local_head(fine)
        if (k, l) != (1, 1):
            parts = self.student.decomposers[f"{k}x{l}"](parts)
            wholes = self.student.composers[f"{k}x{l}"](wholes)
        parts_erased = np.repeat(np.repeat(~visible_coarse.reshape(t, t), k, 0), l, 1).ravel()
        blocks = (~visible_fine).reshape(t // k, k, t // l, l).transpose(0, 2, 1, 3).reshape(-1, k * l)
        wholes_erased = 2 * blocks.sum(1) >= k * l
        with torch.no_grad():
            local_fine, local_coarse = self.teacher.local_head(taught_fine), self.teacher.local_head(taught_coarse)
        target = targets.decomposition_target(*origins, t, k, l)
        target, known = self._with_erased(target, ~visible_fine, parts_erased)
        matching = self.params.matching_loss
        logits = self.student.decomposition_logits
        local = weights.decomposition * self._bce(
            local_fine, parts, logits, target, known, matching.alpha_decomposition
        )
        target = targets.composition_target(*origins, t, k, l)
        target, known = self._with_erased(target, ~visible_coarse, wholes_erased)
        logits = self.student.composition_logits
        local = local + weights.composition * self._bce(
            local_coarse, wholes, logits, target, known, matching.alpha_composition
        )
        return cross, local, rows

    def _with_erased(self, target: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return targets.with_columns_erased(target, cols) if self.is_whole else targets.with_erased(target, rows, cols)

    @staticmethod
    def _bce(taught: Tensor, tokens: Tensor, logits, target: np.ndarray, known: np.ndarray, alpha: float) -> Tensor:
        taught, tokens = taught[0].flatten(0, 1), tokens[0].flatten(0, 1)
        cosines = (taught / taught.norm(dim=1, keepdim=True)) @ (tokens / tokens.norm(dim=1, keepdim=True)).T
        p = torch.sigmoid(torch.exp(logits.log_scale) * cosines + logits.bias)
        y = torch.from_numpy(target)
        bce = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))
        weight = (alpha * y + (1 - alpha) * (1 - y)) * torch.from_numpy(known)
        return (weight * bce).mean()
