"""Segmentation: which pixels are inside of each structure, by UPerNet; structures may overlap (docs/finetune.md)."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ace.data.crops import resample
from ace.downstream.base import Arrays, Score, Target, Task
from ace.downstream.cases import REFERENCE_PX, canvas_side, mean_of_cases, mean_over, no_such_names, pixel_mm
from ace.downstream.joint import shown_masks
from ace.downstream.overlap import (
    Masks,
    dice_of,
    dice_over_set,
    iou_of,
    iou_over_set,
    mean_shapes,
    outline_distances,
    overlap_counts,
)
from ace.downstream.params import TaskParams
from ace.downstream.parts import Part
from ace.downstream.shown import ShownPart
from ace.downstream.upernet import CHANNELS_PER_GROUP, UPerNet
from ace.downstream.views import View, center_view
from ace.drawing.outlines import outlined
from ace.embed.encoder import Encoder
from shards.core.canvas import Canvas
from shards.core.errors import ConfigError
from shards.reading.reader import Sample, ShardReader

PICTURE_ZOOM = 2


class SegmentationParams(TaskParams):
    """A task of segmentation."""

    kind: Literal["segmentation"]
    """Names this kind of task."""
    structures: tuple[str, ...] = Field(min_length=1)
    """Structures, as the shards name their masks, in the order of the outputs."""
    mask_px: int = Field(ge=8, multiple_of=8)
    """Side of the masks that are learned and scored, in pixels: the same for every encoder, whatever it takes."""
    decoder_channels: int = Field(ge=CHANNELS_PER_GROUP, multiple_of=CHANNELS_PER_GROUP)
    """Width of the decoder; the library's is 256."""


class Segmentation(Task[SegmentationParams]):
    """Says which pixels are inside; masks of `truth` and `answers` are packed, eight pixels of a row a byte."""

    kind = "segmentation"
    params_type: ClassVar[type[TaskParams]] = SegmentationParams
    code = (
        "ace/downstream/cases.py",
        "ace/downstream/joint.py",
        "ace/downstream/overlap.py",
        "ace/downstream/segmentation.py",
        "ace/downstream/upernet.py",
    )
    libraries = ("monai", "segmentation-models-pytorch")

    @property
    def headline(self) -> str:
        """Return the mean Dice."""
        return "dice"

    @cached_property
    def view(self) -> View:
        """Return what is shown of an image where nothing is drawn: the middle."""
        return center_view(self.params.shown.crop_side)

    def truth(self, part: Part, *, is_training: bool) -> Arrays:
        """Read the masks of the middle of each image, whether they are known, and the sides of a pixel in mm.

        Raises:
            ConfigError: no image knows any of the structures.
        """
        reader, canvas_px = ShardReader(part.index), part.index.spec.canvas_px
        masks, known, sides = [], [], []
        found: set[str] = set()
        for row in part.rows:
            sample = reader.read(int(row))
            own = sample.masks()
            found |= own.keys()
            masks.append(_packed(self._seen(own, self.view, canvas_px)))
            known.append([name in own for name in self.params.structures])
            sides.append(pixel_mm(sample.meta, canvas_px * self.view.side, self.params.mask_px))
        if not found & set(self.params.structures):
            raise no_such_names("structures", self.params.structures, part, found)
        return {"masks": np.stack(masks), "known": np.array(known), "pixel_mm": np.array(sides)}

    def classes(self, truth: Arrays) -> Bool[np.ndarray, "images classes"]:
        """Tell which images know a structure: one class, so that few shots are so many images."""
        return np.asarray(truth["known"].any(1, keepdims=True))

    def target(self, sample: Sample, view: View, rng: np.random.Generator) -> Target:
        """Move the masks as the view moves the image."""
        own = sample.masks()
        known = np.array([name in own for name in self.params.structures])
        return Target(self._seen(own, view, canvas_side(sample)), known)

    def network(self, encoder: Encoder) -> nn.Module:
        """Put UPerNet on the encoder."""
        params = self.params
        return UPerNet(encoder.backbone, len(params.structures), params.decoder_channels).to(encoder.device)

    def loss(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Compute cross-entropy plus Dice loss at the size of the masks."""
        return segmentation_loss(self._at_mask_size(outputs), targets, known)

    def answer(self, network: nn.Module, shown: ShownPart, *, is_final: bool) -> Arrays:
        """Return the pixels that are likelier inside than outside."""
        logits = (self._at_mask_size(network(images[:, 0])) for images in shown.images((self.view,)))
        return {"masks": np.concatenate([_packed((own > 0).cpu().numpy()) for own in logits])}

    def validation_score(self, truth: Arrays, answers: Arrays) -> float:
        """Return the mean Dice of all known structures of all images."""
        return float(np.nanmean(self._dice(truth, answers)))

    def check(self, truths: Mapping[str, Arrays]) -> None:
        """Check that training shows every structure.

        Raises:
            ConfigError: naming those that it does not.
        """
        is_shown = np.asarray(truths["train"]["masks"].any((0, 2, 3)))
        if absent := [name for name, own in zip(self.params.structures, is_shown, strict=True) if not own]:
            raise ConfigError(
                f"structures: no training image shows {', '.join(absent)}; leave them out, or write the names as the "
                "dataset does"
            )

    def scores(self, truth: Arrays, answers: Arrays, part: Part) -> Mapping[str, Score]:
        """Score every structure and their mean: overlap per case and over the set, and distance of the outlines."""
        counts, known, patients = self._counts(truth, answers), truth["known"], part.patients
        shapes = mean_shapes(self._each(truth), torch.from_numpy(known))
        guessed = np.concatenate([overlap_counts(shapes, own) for own in self._each(truth)])
        at_1024 = np.full((len(known), 2), self.view.side * REFERENCE_PX / self.params.mask_px)
        in_px, in_mm = (self._distances(truth, answers, sides) for sides in (at_1024, truth["pixel_mm"]))
        by_structure: dict[str, dict[str, Score]] = {}
        for column, name in enumerate(self.params.structures):
            is_known = known[:, column]
            own, chance, of = counts[is_known, column], guessed[is_known, column], patients[is_known]
            if not is_known.any():
                continue
            has_it = own[:, 2] > 0
            facts = {"num_images": len(own), "num_with": int(has_it.sum())}
            distances = {"hd95_px_at_1024": in_px[is_known, column], "hd95_mm": in_mm[is_known, column]}
            by_structure[name] = {
                "dice": Score(mean_of_cases(dice_of(own), of), float(dice_of(chance).mean()), facts),
                "dice_where_present": Score(mean_of_cases(dice_of(own[has_it]), of[has_it]), None, facts),
                "dice_over_set": Score(dice_over_set(own, of), dice_of(chance.sum(0, keepdims=True)).item(), facts),
                "iou": Score(mean_of_cases(iou_of(own), of), float(iou_of(chance).mean()), facts),
                "iou_over_set": Score(iou_over_set(own, of), iou_of(chance.sum(0, keepdims=True)).item(), facts),
                **{
                    figure: Score(mean_of_cases(values, of), None, {"num_outlines": int((~np.isnan(values)).sum())})
                    for figure, values in distances.items()
                },
            }
        return mean_over(by_structure)

    def losses(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, " images"]:
        """Return 1 − the mean Dice of each image."""
        losses: Float[np.ndarray, " images"] = 1 - np.nanmean(self._dice(truth, answers), axis=1)
        return losses

    def shown_answer(self, truth: Arrays, answers: Arrays, image: int, canvas: Canvas) -> dict[str, Any]:
        """Return the outlines of truth and answer over the image."""
        pixels = resample(canvas, self.view.window(len(canvas)), self.params.mask_px)
        true, found = (_unpacked(arrays["masks"][image]) for arrays in (truth, answers))
        return {"overlay": outlined(pixels, true, found, zoom=PICTURE_ZOOM)}

    def _at_mask_size(self, logits: Float[Tensor, "batch structures rows cols"]) -> Tensor:
        side = self.params.mask_px
        return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)

    def _seen(
        self, masks: Mapping[str, Bool[np.ndarray, "side side"]], view: View, canvas_px: int
    ) -> Bool[np.ndarray, "structures new new"]:
        """The masks through a view; those that are not known are empty."""
        nothing = np.zeros((canvas_px, canvas_px), bool)
        stack = np.stack([masks.get(name, nothing) for name in self.params.structures])
        return shown_masks(stack, view, self.params.mask_px)

    def _each(self, arrays: Arrays) -> Iterator[Masks]:
        """The masks of each image, as a batch of one."""
        return (torch.from_numpy(_unpacked(own))[None] for own in arrays["masks"])

    def _counts(self, truth: Arrays, answers: Arrays) -> Int[np.ndarray, "images structures 3"]:
        pairs = zip(self._each(answers), self._each(truth), strict=True)
        return np.concatenate([overlap_counts(predicted, true) for predicted, true in pairs])

    def _dice(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, "images structures"]:
        """Dice of each case; nan where a structure is not known."""
        return np.where(truth["known"], dice_of(self._counts(truth, answers)), np.nan)

    def _distances(
        self, truth: Arrays, answers: Arrays, sides: Float[np.ndarray, "images 2"]
    ) -> Float[np.ndarray, "images structures"]:
        """Distances of outlines, in the unit of the sides of a pixel; nan where a structure is not known."""
        triples = zip(self._each(answers), self._each(truth), sides, strict=True)
        found = np.concatenate([outline_distances(predicted, true, own[None]) for predicted, true, own in triples])
        return np.where(truth["known"], found, np.nan)


def segmentation_loss(
    logits: Float[Tensor, "batch structures side side"], truth: Masks, known: Bool[Tensor, "batch structures"]
) -> Float[Tensor, ""]:
    """Compute the mean of binary cross-entropy plus Dice loss over known structures; 0 where none is known."""
    # Here, not above: it takes seconds to import, and comes with an extra.
    from monai.losses import DiceLoss

    logits, inside = logits.float(), truth.float()
    entropy = F.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean((2, 3))
    dice: Tensor = DiceLoss(sigmoid=True, reduction="none")(logits, inside).flatten(1)
    return ((entropy + dice) * known).sum() / known.sum().clamp_min(1)


def _packed(masks: Bool[np.ndarray, "*cases side side"]) -> UInt8[np.ndarray, "*cases side bytes"]:
    return np.packbits(masks, axis=-1)


def _unpacked(masks: UInt8[np.ndarray, "*cases side bytes"]) -> Bool[np.ndarray, "*cases side side"]:
    return np.unpackbits(masks, axis=-1).astype(bool)
