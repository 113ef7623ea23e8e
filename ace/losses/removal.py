"""Removal is subtraction: what is taken out of a crop takes exactly its own tokens with it (docs/method.md).

Not of the paper. With z the student's tokens of the crop without its rectangles, z̄ the teacher's of the whole crop and
v the share of each token that stays, the term is Σ‖z − v·z̄‖² / Σ‖z̄‖², over all tokens of all crops with something
erased. Where the rectangles show another image's tissue, its tokens z̄' come in: Σ‖z − v·z̄ − (1−v)·z̄'‖². Sums are
returned, not the ratio: with several ranks or micro-batches the caller adds them up first.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ace.geometry.visibility import VISIBLE_ABOVE


@dataclass(frozen=True, kw_only=True)
class RemovalSums:
    """The sums whose ratios the term's monitors are, taken over the crops with something erased.

    Attributes:
        erased_length: Summed length of the student's erased tokens, of which at most half stays.
        num_erased: How many there are.
        visible_length: Summed length of the student's other tokens.
        num_visible: How many there are.
        change_outside: Squared change, ‖z − z̄‖², of tokens of which nothing is erased.
        change: Squared change of all tokens.
    """

    erased_length: Float[Tensor, ""]
    num_erased: Float[Tensor, ""]
    visible_length: Float[Tensor, ""]
    num_visible: Float[Tensor, ""]
    change_outside: Float[Tensor, ""]
    change: Float[Tensor, ""]

    def stacked(self) -> Float[Tensor, " sums"]:
        """Return all sums in one tensor, in the order of the fields, to be added up over micro-batches and ranks."""
        return torch.stack([getattr(self, item.name) for item in fields(self)])

    @classmethod
    def of(cls, stacked: Float[Tensor, " sums"]) -> "RemovalSums":
        """Return the sums that `stacked` has put into one tensor."""
        return cls(**dict(zip((item.name for item in fields(cls)), stacked, strict=True)))

    @property
    def ratios(self) -> dict[str, Float[Tensor, ""]]:
        """Return the monitors by name; they are NaN where nothing was erased.

        `removal_erased_length` is the mean length of erased tokens over that of visible ones, 0 where what is erased
        leaves nothing. `removal_change_outside` is the share of the squared change that falls on tokens of which
        nothing is erased, 0 where they stay as they are.
        """
        erased, visible = self.erased_length / self.num_erased, self.visible_length / self.num_visible
        return {
            "removal_erased_length": erased / visible,
            "removal_change_outside": self.change_outside / self.change,
        }


def removal_error(
    student: Float[Tensor, "crops tokens dim"],
    teacher: Float[Tensor, "crops tokens dim"],
    shown: Float[Tensor, "crops tokens"],
    inserted: Float[Tensor, "crops tokens dim"] | None = None,
) -> Float[Tensor, ""]:
    """Sum ‖z − v·z̄ − (1−v)·z̄'‖² over all tokens of the crops with something erased; it is 0 if nothing is.

    Args:
        student: z, the backbone's tokens of the crops with their rectangles erased.
        teacher: z̄, the backbone's tokens of the whole crops; they get no gradient.
        shown: v, the share of each token that is not erased, from 0 to 1.
        inserted: z̄', the teacher's tokens of the tissue that the rectangles show, 0 in crops with another fill; None
            where no crop shows any.
    """
    difference = student.float() - shown[..., None] * teacher.detach().float()
    if inserted is not None:
        difference = difference - (1 - shown)[..., None] * inserted.detach().float()
    # Chosen before it is squared: the gradient of a square that is left out is 0 times its root, not 0, if that is
    # infinite.
    return torch.where(has_erased(shown)[:, None, None], difference, 0.0).square().sum()


def teacher_energy(
    teacher: Float[Tensor, "crops tokens dim"], shown: Float[Tensor, "crops tokens"]
) -> Float[Tensor, ""]:
    """Sum ‖z̄‖², by which `removal_error` is divided, over all tokens of the crops with something erased."""
    return torch.where(has_erased(shown), teacher.float().square().sum((1, 2)), 0.0).sum()


def has_erased(shown: Float[Tensor, "crops tokens"]) -> Bool[Tensor, " crops"]:
    """Tell which crops have something erased."""
    return (shown < 1).any(1)


@torch.no_grad()
def removal_sums(
    student: Float[Tensor, "crops tokens dim"],
    teacher: Float[Tensor, "crops tokens dim"],
    shown: Float[Tensor, "crops tokens"],
) -> RemovalSums:
    """Add up what the monitors need; the arguments are those of `removal_error`."""
    is_taken = has_erased(shown)[:, None].expand_as(shown)
    is_erased = is_taken & (shown <= VISIBLE_ABOVE)
    is_visible = is_taken & ~is_erased
    lengths = student.float().norm(dim=-1)
    change = (student.float() - teacher.float()).square().sum(-1)
    return RemovalSums(
        erased_length=torch.where(is_erased, lengths, 0.0).sum(),
        num_erased=is_erased.sum().float(),
        visible_length=torch.where(is_visible, lengths, 0.0).sum(),
        num_visible=is_visible.sum().float(),
        change_outside=torch.where(is_taken & (shown == 1), change, 0.0).sum(),
        change=torch.where(is_taken, change, 0.0).sum(),
    )
