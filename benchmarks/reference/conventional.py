"""A crop-pair data set as one would write it first, for `benchmarks/loader.py` to compare with.

The same kind of item: two crops of a grid with a random placement, augmented, and what the losses need of them. What is
plain about it:

- an image is a PNG of its own, decoded to RGB with Pillow, grey or not;
- the random placement is a bicubic random resized crop of the whole canvas, from which both crops are cut;
- augmentation is torchvision's on Pillow images, one by one on the host; its blur is a dense convolution, so Pillow's,
  several times as fast, can be had in its place;
- both dense targets and both overlap masks come from Python loops over the sample's tokens (`targets.py`);
- crops leave as normalised floats, and a batch is torch's default stack of all that.

It is not slowed down on purpose: drawing the pair takes no search, and nothing above is computed twice.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ace.data.params import AugmentParams
from shards.core.grid import GridSpec, draw_crop_pair

from .targets import looped_composition, looped_decomposition


class ConventionalDataset(Dataset[dict[str, Tensor]]):
    """Items by number; `torch.utils.data.default_collate` batches them."""

    def __init__(
        self,
        paths: Sequence[Path],
        spec: GridSpec,
        augment: AugmentParams,
        *,
        seed: int,
        blur_by: Literal["torchvision", "Pillow"],
    ) -> None:
        """Plan the transforms.

        Args:
            paths: Images of the canvas's size.
            spec: Grid with one (k, l).
            augment: Probabilities and strengths, as far as torchvision has the step.
            seed: Of the pairs; torchvision's draws are torch's.
            blur_by: Whose Gaussian blur.
        """
        self.paths, self.spec = list(paths), spec
        self.rng = np.random.default_rng(seed)
        light, blur, sharpen = augment.brightness_contrast, augment.blur, augment.sharpen
        self.sigmas = blur.min_sigma_px, blur.max_sigma_px
        # As wide as the strongest blur needs, and no wider.
        gaussian = v2.GaussianBlur(2 * math.ceil(3 * blur.max_sigma_px) + 1, self.sigmas)
        blurred = gaussian if blur_by == "torchvision" else v2.Lambda(self._blurred)
        self.transform = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(light.max_brightness, light.max_contrast)], p=light.probability),
                v2.RandomApply([blurred], p=blur.probability),
                v2.RandomAdjustSharpness(1 + sharpen.max_amount, p=sharpen.probability),
                v2.RandomEqualize(p=augment.clahe.probability),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        spec, scale = self.spec, self.spec.scales[0]
        pair = draw_crop_pair(spec, scale, self.rng)
        row, col, side = pair.jitter
        canvas = Image.open(self.paths[number]).convert("RGB")
        canvas = canvas.resize(
            (spec.canvas_px, spec.canvas_px), Image.Resampling.BICUBIC, box=(col, row, col + side, row + side)
        )
        crops = []
        for (top, left), (k, l) in ((pair.coarse, (scale.k, scale.l)), (pair.fine, (1, 1))):
            height, width = k * spec.crop_px, l * spec.crop_px
            crop = v2.functional.crop(canvas, top * spec.cell_px, left * spec.cell_px, height, width)
            crop = crop.resize((spec.crop_px, spec.crop_px), Image.Resampling.BICUBIC)
            crops.append(self.transform(crop))
        arguments = (pair.coarse, pair.fine, spec.t, scale.k, scale.l)
        decomposition, composition = looped_decomposition(*arguments), looped_composition(*arguments)
        return {
            "coarse": crops[0],
            "fine": crops[1],
            "decomposition": torch.from_numpy(decomposition),
            "composition": torch.from_numpy(composition),
            "overlap_coarse": torch.from_numpy(composition.max(1) > 0),
            "overlap_fine": torch.from_numpy(decomposition.max(1) > 0),
        }

    def _blurred(self, crop: Image.Image) -> Image.Image:
        return crop.filter(ImageFilter.GaussianBlur(self.rng.uniform(*self.sigmas)))
