"""The conventional data set that the loader is compared with does the same work: the same crops and targets."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from ace.data.crops import resample
from ace.data.params import AugmentParams
from ace.geometry.overlap import overlap_masks
from ace.geometry.targets import composition_target, decomposition_target
from benchmarks.reference.conventional import ConventionalDataset
from shards.core.grid import GridSpec, Scale, draw_crop_pair

SPEC = GridSpec(n=8, cell_px=8, t=4, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


def augment_params(probability: float) -> AugmentParams:
    return AugmentParams.from_params(
        {
            "where": "host",
            "brightness_contrast": {"probability": probability, "max_brightness": 0.2, "max_contrast": 0.2},
            "blur": {"probability": probability, "min_sigma_px": 0.5, "max_sigma_px": 1.0},
            "sharpen": {"probability": probability, "max_amount": 1.0, "sigma_px": 1.0},
            "clahe": {"probability": probability, "max_clip_limit": 3.0, "num_tiles": 4},
            "erase": {
                "probability": 0.0,
                "min_side": 0.3,
                "max_side": 0.8,
                "max_rectangles": 1,
                "max_aspect": 1.0,
                "fills": {"black": 1.0, "mean": 0.0, "grey": 0.0, "noise": 0.0, "tissue": 0.0},
            },
        },
        "augment",
    )


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Canvases without detail below a few pixels, so that two ways of interpolating agree."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)
        Image.fromarray(coarse).resize((SPEC.canvas_px, SPEC.canvas_px), Image.Resampling.BICUBIC).save(path)
    return paths


def test_it_cuts_the_crops_and_builds_the_targets_that_the_loader_and_the_step_do(paths: list[Path]) -> None:
    batch = default_collate([ConventionalDataset(paths, SPEC, augment_params(0.0), seed=0, blur_by="Pillow")[1]])
    pair = draw_crop_pair(SPEC, SPEC.scales[0], np.random.default_rng(0))
    canvas = np.array(Image.open(paths[1]))
    for which in ("coarse", "fine"):
        levels = 255 * (batch[which][0] * 0.25 + 0.5)
        assert levels.shape == (3, SPEC.crop_px, SPEC.crop_px)
        expected = resample(canvas, pair.window(which, SPEC), SPEC.crop_px)  # type: ignore[arg-type]
        assert np.abs(levels.numpy() - expected).mean() < 4
    origins = torch.tensor([pair.coarse]), torch.tensor([pair.fine])
    fine, coarse = overlap_masks(*origins, t=SPEC.t, k=2, l=2)
    assert torch.equal(batch["overlap_fine"], fine)
    assert torch.equal(batch["overlap_coarse"], coarse)
    for build, name in ((decomposition_target, "decomposition"), (composition_target, "composition")):
        torch.testing.assert_close(batch[name], build(*origins, t=SPEC.t, k=2, l=2).dense())


@pytest.mark.parametrize("blur_by", ["torchvision", "Pillow"])
def test_its_augmentation_changes_crops(blur_by: Literal["torchvision", "Pillow"], paths: list[Path]) -> None:
    plain, changed = (
        ConventionalDataset(paths, SPEC, augment_params(p), seed=0, blur_by=blur_by)[0] for p in (0.0, 1.0)
    )
    assert not torch.equal(plain["coarse"], changed["coarse"])
    assert torch.equal(plain["decomposition"], changed["decomposition"])
