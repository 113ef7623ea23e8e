"""The matching terms of crop pairs: decomposition and composition (method.md §4; paper sec. 3.3)."""

from dataclasses import dataclass

from torch import Tensor

from ace.data.batches import PairBatch
from ace.geometry.targets import Matches, composition_target, decomposition_target
from ace.geometry.visibility import composed_visible, decomposed_visible, taught_matches, visible_matches
from ace.losses.matching import matching_accuracy, matching_loss, target_entropy
from ace.models.heads import LogitScale
from ace.models.networks import Student, StudentOutputs, TeacherOutputs
from ace.pretrain.params import LossWeights, MatchingLossParams


@dataclass(frozen=True, kw_only=True)
class MatchingTerm:
    """One matching term on one micro-batch.

    Attributes:
        name: `decomposition` or `composition`.
        teacher_tokens: What is matched with; None only where the term is off.
        student_tokens: What the student made of the other crop; likewise.
        target: Which tokens match.
        visible: Which of the teacher's tokens, and of the student's, show something that was not erased.
        logits: Scale and bias of the cosines; None only where the term is off.
        alpha: Weight of the matches against the others.
    """

    name: str
    teacher_tokens: Tensor | None
    student_tokens: Tensor | None
    target: Matches
    visible: tuple[Tensor, Tensor]
    logits: LogitScale | None
    alpha: float

    def values(self, *, is_whole: bool, is_measured: bool) -> dict[str, Tensor]:
        """Compute the loss and, if measured, its excess over the soft targets' entropy and its accuracy.

        Args:
            is_whole: Whether the teacher saw whole crops, so that all its tokens count.
            is_measured: Whether to measure more than the loss.
        """
        # Built and computed whenever the branch's weight is above 0.
        assert self.teacher_tokens is not None
        assert self.student_tokens is not None
        assert self.logits is not None
        scale, bias = self.logits()
        matches, left_out = (
            taught_matches(self.target, self.visible[1]) if is_whole else visible_matches(self.target, *self.visible)
        )
        tokens = self.teacher_tokens, self.student_tokens
        loss = matching_loss(*tokens, matches, left_out, scale=scale, bias=bias, alpha=self.alpha)
        terms = {f"loss_{self.name}": loss}
        if is_measured:
            terms[f"loss_{self.name}_excess"] = loss - target_entropy(matches, alpha=self.alpha)
            terms[f"accuracy_{self.name}"] = matching_accuracy(*tokens, matches, self.visible[1])
        return terms


@dataclass(frozen=True)
class LocalObjective:
    """The matching terms of a training.

    Attributes:
        weights: Weights of all terms.
        matching: Parameters of these.
        t: Tokens per crop side.
    """

    weights: LossWeights
    matching: MatchingLossParams
    t: int

    def terms(
        self,
        batch: PairBatch,
        student: StudentOutputs,
        teacher: TeacherOutputs,
        scales: Student,
        *,
        share: float,
        is_measured: bool,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Compute the matching terms whose weight is above 0.

        Args:
            batch: Crop pairs.
            student: The student's outputs on them.
            teacher: The teacher's outputs on them.
            scales: The plain student, whose matching scales and biases the losses use.
            share: Multiplies every term: this micro-batch's part of the rank's samples.
            is_measured: Whether to measure more than the losses.

        Returns:
            The weighted losses, and by name each loss and, if measured, its excess over the soft targets' entropy and
            its accuracy.
        """
        weighted: list[Tensor] = []
        named: dict[str, Tensor] = {}
        for weight, term in self._terms(batch, student, teacher, scales):
            values = term.values(is_whole=self.weights.removal > 0, is_measured=is_measured)
            named |= {key: share * value for key, value in values.items()}
            weighted.append(weight * named[f"loss_{term.name}"])
        return weighted, named

    def _terms(
        self, batch: PairBatch, student: StudentOutputs, teacher: TeacherOutputs, scales: Student
    ) -> list[tuple[float, MatchingTerm]]:
        """Return each term that is on, with its weight."""
        coarse, fine = batch.coarse_origin, batch.fine_origin
        sizes = {"t": self.t, "k": batch.k, "l": batch.l}
        terms = []
        if self.weights.decomposition > 0:
            term = MatchingTerm(
                name="decomposition",
                teacher_tokens=teacher.fine_tokens,
                student_tokens=student.decomposed,
                target=decomposition_target(coarse, fine, **sizes),
                visible=(batch.fine_visible, decomposed_visible(batch.coarse_visible, **sizes)),
                logits=scales.decomposition_logits,
                alpha=self.matching.alpha_decomposition,
            )
            terms.append((self.weights.decomposition, term))
        if self.weights.composition > 0:
            term = MatchingTerm(
                name="composition",
                teacher_tokens=teacher.coarse_tokens,
                student_tokens=student.composed,
                target=composition_target(coarse, fine, **sizes),
                visible=(batch.coarse_visible, composed_visible(batch.fine_visible, **sizes)),
                logits=scales.composition_logits,
                alpha=self.matching.alpha_composition,
            )
            terms.append((self.weights.composition, term))
        return terms
