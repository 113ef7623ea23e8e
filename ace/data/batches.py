"""One step's crops on their way to the networks: pairs on the grid, or views without it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ace.data.augment_device import augment_batch
from ace.data.augmentation import AS_IT_IS, Augmentation, Augmentations
from ace.data.erase import from_host, partners, with_erased
from ace.data.params import AugmentParams
from ace.geometry.visibility import VISIBLE_ABOVE
from shards.core.canvas import Pixels
from shards.core.grid import CropPair
from shards.core.normalisation import Normalisation

Shown = Float[np.ndarray, "t t"]
"""Share of each token's pixels that is not erased."""
AnyBatch = TypeVar("AnyBatch", bound="CropBatch")


@dataclass(frozen=True, kw_only=True)
class CropPairItem:
    """One sample's two crops as the loader's processes make them, and how each is still to be augmented."""

    coarse: Pixels
    fine: Pixels
    pair: CropPair
    normalisation: Normalisation
    key: str
    coarse_shown: Shown
    fine_shown: Shown
    coarse_augmentation: Augmentation = AS_IT_IS
    fine_augmentation: Augmentation = AS_IT_IS


@dataclass(frozen=True, kw_only=True)
class ViewItem:
    """Hold one sample's views as the loader's processes make them, those of the teacher first.

    With them goes how each is still to be augmented.
    """

    views: list[Pixels]
    shown: list[Shown]
    augmentations: list[Augmentation]
    num_teacher_views: int
    normalisation: Normalisation
    key: str


@dataclass(frozen=True, kw_only=True)
class CropBatch(ABC):
    """Holds the crops of one training step and what belongs to them, whatever the crops show.

    Attributes:
        mean: Subtracted from each channel of pixels in [0, 1]; each sample's shard set has its own.
        std: Divides them after.
        keys: The samples.
        augmentations: What the crops have still to go through before the networks see them; None for nothing.
        erased: The augmented crops with their rectangles erased: coarse and fine, or the views; None where nothing is.
        donated: Which crops have their rectangles filled with their partner's tissue (`ace.data.erase.partners`); None
            where nothing is erased.
    """

    mean: Float[Tensor, "batch channels"]
    std: Float[Tensor, "batch channels"]
    keys: list[str]
    augmentations: Augmentations | None
    erased: UInt8[Tensor, "batch crops channels size size"] | None = field(default=None, kw_only=True)
    donated: Bool[Tensor, "batch crops"] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        """Hand a sample to another process, the crops in shared memory and all else as arrays in the message.

        In shared memory each tensor costs a file and a handshake.
        """
        return {
            name: value.numpy() if isinstance(value, Tensor) and not _has_pixels(value) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        self.__dict__.update(state | arrays)

    def split(self: AnyBatch, num_parts: int) -> list[AnyBatch]:
        """Split the batch into equal parts, in order; `num_parts` divides its length."""
        size = len(self) // num_parts
        return [self._sliced(slice(first, first + size)) for first in range(0, len(self), size)]

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        """Move the batch to a device; from pinned memory the copy runs beside the computation."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """Return the batch in page-locked memory (torch's loader calls this)."""
        return self._mapped(Tensor.pin_memory)

    def share_memory(self: AnyBatch) -> AnyBatch:
        """Return the batch with its crops in memory that other processes can be handed.

        Raises:
            RuntimeError: there is no room for them.
        """
        share = Tensor.share_memory_
        return self._mapped(lambda tensor: share(tensor) if _has_pixels(tensor) else tensor)  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        """Bytes of its crops."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor) and _has_pixels(value))

    @abstractmethod
    def whole(self) -> list[Float[Tensor, "batch channels size size"]]:
        """Crop by crop, as the networks take them, nothing erased."""

    @abstractmethod
    def shown(self) -> list[Float[Tensor, "batch tokens"]]:
        """Crop by crop, the share of each token that is not erased."""

    def visible(self) -> list[Bool[Tensor, "batch tokens"]]:
        """Crop by crop, the tokens of which more than half is not erased."""
        return [shares > VISIBLE_ABOVE for shares in self.shown()]

    def seen(self) -> list[Float[Tensor, "batch channels size size"]]:
        """Crop by crop, as the networks take them, with what is erased of them."""
        return self.whole() if self.erased is None else [self._normalized(crop) for crop in self.erased.unbind(1)]

    def donors(self) -> Int[Tensor, " batch"]:
        """Name whose tissue fills each sample: its partner's, or its own where the two are normalised differently.

        Its own changes nothing. Grey levels of another shard set would mean something else in this one.
        """
        device = self.mean.device
        own, other = torch.arange(len(self), device=device), from_host(partners(len(self)), device)
        is_alike = ((self.mean[other] == self.mean) & (self.std[other] == self.std)).all(dim=1)
        return torch.where(is_alike, other, own)

    def _augmented(self, crops: Tensor, params: AugmentParams) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Crops [batch, crops, ...] as their records say, and the fields `erased` and `donated`."""
        if self.augmentations is None:
            return crops, None, None
        whole = augment_batch(crops.flatten(0, 1), self.augmentations, params)
        erasures = [erasure for sample in self.augmentations.erasures for erasure in sample]
        donated = [erasure is not None and erasure.fill == "tissue" for erasure in erasures]
        donors = whole.view(crops.shape)[self.donors()].flatten(0, 1) if any(donated) else None
        erased = with_erased(whole, erasures, donors)
        if erased is whole:
            return whole.view(crops.shape), None, None
        return whole.view(crops.shape), erased.view(crops.shape), from_host(donated, crops.device).view(crops.shape[:2])

    def _normalized(self, crops: Tensor) -> Tensor:
        if self.augmentations is not None:
            raise ValueError("these crops are not augmented yet: networks take what `augmented` returns")
        return (crops / 255.0 - self.mean[:, :, None, None]) / self.std[:, :, None, None]

    def _sliced(self: AnyBatch, part: slice) -> AnyBatch:
        records = None if self.augmentations is None else self.augmentations.sliced(part)
        tensors = replace(self, augmentations=None)._mapped(lambda tensor: tensor[part])
        return replace(tensors, keys=self.keys[part], augmentations=records)

    def _mapped(self: AnyBatch, function: Callable[[Tensor], Tensor]) -> AnyBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
        if self.augmentations is not None:
            changed["augmentations"] = self.augmentations.mapped(function)
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class PairBatch(CropBatch):
    """One step's crop pairs and what the geometry needs of them.

    Attributes:
        coarse: 8-bit coarse crops.
        fine: 8-bit fine crops.
        coarse_origin: (row, col) in cells.
        fine_origin: (row, col) in cells.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
        coarse_shown: Share of each token of the coarse crops that is not erased, from 0 to 1, row-major.
        fine_shown: Share of each token of the fine crops that is not erased, from 0 to 1, row-major.
    """

    coarse: UInt8[Tensor, "batch channels size size"]
    fine: UInt8[Tensor, "batch channels size size"]
    coarse_origin: Int[Tensor, "batch 2"]
    fine_origin: Int[Tensor, "batch 2"]
    k: int
    l: int
    coarse_shown: Float[Tensor, "batch tokens"]
    fine_shown: Float[Tensor, "batch tokens"]

    @property
    def coarse_visible(self) -> Bool[Tensor, "batch tokens"]:
        """Tokens of the coarse crops of which more than half is not erased."""
        return self.coarse_shown > VISIBLE_ABOVE

    @property
    def fine_visible(self) -> Bool[Tensor, "batch tokens"]:
        """Tokens of the fine crops of which more than half is not erased."""
        return self.fine_shown > VISIBLE_ABOVE

    def augmented(self, params: AugmentParams) -> "PairBatch":
        """Return a copy whose crops are augmented as was drawn for them, on their own device."""
        whole, erased, donated = self._augmented(torch.stack([self.coarse, self.fine], 1), params)
        coarse, fine = whole.unbind(1)
        return replace(
            self,
            coarse=coarse.contiguous(),
            fine=fine.contiguous(),
            erased=erased,
            donated=donated,
            augmentations=None,
        )

    def whole(self) -> list[Float[Tensor, "batch channels size size"]]:
        """Coarse and fine crops as the networks take them, nothing erased."""
        return [self._normalized(self.coarse), self._normalized(self.fine)]

    def shown(self) -> list[Float[Tensor, "batch tokens"]]:
        """`coarse_shown` and `fine_shown`."""
        return [self.coarse_shown, self.fine_shown]


@dataclass(frozen=True)
class ViewBatch(CropBatch):
    """One step's views; between their tokens no correspondence is known.

    Attributes:
        views: 8-bit views of each sample.
        view_shown: Share of each token of each view that is not erased, from 0 to 1, row-major.
        num_teacher_views: How many of the views, the first, the teacher sees.
    """

    views: UInt8[Tensor, "batch views channels size size"]
    view_shown: Float[Tensor, "batch views tokens"]
    num_teacher_views: int

    def augmented(self, params: AugmentParams) -> "ViewBatch":
        """Return a copy whose views are augmented as was drawn for them, on their own device."""
        views, erased, donated = self._augmented(self.views, params)
        return replace(self, views=views, erased=erased, donated=donated, augmentations=None)

    def whole(self) -> list[Float[Tensor, "batch channels size size"]]:
        """View by view, as the networks take them, nothing erased."""
        return [self._normalized(view) for view in self.views.unbind(1)]

    def shown(self) -> list[Float[Tensor, "batch tokens"]]:
        """`view_shown`, view by view."""
        return list(self.view_shown.unbind(1))


@overload
def collate(items: Sequence[CropPairItem]) -> PairBatch: ...
@overload
def collate(items: Sequence[ViewItem]) -> ViewBatch: ...
def collate(items: Sequence[CropPairItem] | Sequence[ViewItem]) -> PairBatch | ViewBatch:
    """Stack one step's items; all are of one kind and have the step's (k, l)."""
    pairs = [item for item in items if isinstance(item, CropPairItem)]
    return _collate_pairs(pairs) if pairs else _collate_views([item for item in items if isinstance(item, ViewItem)])


def _collate_pairs(items: Sequence[CropPairItem]) -> PairBatch:
    return PairBatch(
        coarse=_stacked([item.coarse for item in items]),
        fine=_stacked([item.fine for item in items]),
        coarse_origin=torch.tensor([item.pair.coarse for item in items]),
        fine_origin=torch.tensor([item.pair.fine for item in items]),
        mean=torch.tensor([item.normalisation.mean for item in items]),
        std=torch.tensor([item.normalisation.std for item in items]),
        k=items[0].pair.k,
        l=items[0].pair.l,
        keys=[item.key for item in items],
        coarse_shown=_stacked_shown([item.coarse_shown for item in items]),
        fine_shown=_stacked_shown([item.fine_shown for item in items]),
        augmentations=Augmentations.of([(item.coarse_augmentation, item.fine_augmentation) for item in items]),
    )


def _collate_views(items: Sequence[ViewItem]) -> ViewBatch:
    return ViewBatch(
        views=torch.stack([_stacked(item.views) for item in items]),
        view_shown=torch.stack([_stacked_shown(item.shown) for item in items]),
        num_teacher_views=items[0].num_teacher_views,
        augmentations=Augmentations.of([item.augmentations for item in items]),
        mean=torch.tensor([item.normalisation.mean for item in items]),
        std=torch.tensor([item.normalisation.std for item in items]),
        keys=[item.key for item in items],
    )


def _has_pixels(tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8


def _stacked(crops: Sequence[Pixels]) -> UInt8[Tensor, "batch channels size size"]:
    stack = torch.from_numpy(np.stack(crops))
    return stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2).contiguous()


def _stacked_shown(shares: Sequence[Shown]) -> Float[Tensor, "batch tokens"]:
    return torch.from_numpy(np.stack(shares)).flatten(1)
