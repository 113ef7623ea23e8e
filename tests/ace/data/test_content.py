"""The decisive test: the correspondence read off the pixels is the one that masks and targets claim.

Every canvas is painted with its own coordinates, sharded and read by the real code, and cropped by the real loader.
"""

import numpy as np
import pytest
import torch

from ace.data.batches import PairBatch
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.geometry.overlap import overlap_masks
from ace.geometry.targets import composition_target, decomposition_target
from shards.core.params import GridParams, MixParams
from tests.ace.data.painted import VIEWS, BuildShards, grid_params

NUM_IMAGES, EPOCHS = 6, 4
MIX = MixParams(weight=1.0, mean=0.5, std=0.25)
SCALES = [(1, 1), (1, 2), (2, 1), (2, 2)]
# How far apart, in cells, two readings of one place of a gradient may be. Over 25 other sets of crops a scale they were
# at most .04 apart as PNG and .21, three grey levels, as JPEG; crops that lie a quarter of a cell beside each other
# show .25.
MOST_APART = {"png": 0.1, "jpg": 0.24}


def plain_dataset(index, grid: GridParams, crops: str) -> CropDataset:
    return CropDataset(
        [(index, MIX)],
        grid.spec,
        objective="ace",
        views=VIEWS,
        crops=crops,
        augment=None,
        in_channels=3,
        seed=5,
    )


def load_pairs(index, grid: GridParams, crops: str) -> list[PairBatch]:
    dataset = plain_dataset(index, grid, crops)
    sampler = StepSampler(dataset, batch_size=NUM_IMAGES, rank=0, world_size=1, first_step=0, epochs=EPOCHS)
    return list(build_loader(sampler, num_workers=0, is_pinned=False))


def read_tokens(crops: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """What stands in the middle of each of rows × cols tokens: red and green, [batch, rows·cols, 2]."""
    size = crops.shape[-1]
    at_rows, at_cols = (((torch.arange(count) + 0.5) * size / count).long() for count in (rows, cols))
    # The middle is a corner of four pixels.
    corners = [crops[:, :2, at_rows - a][..., at_cols - b].float() for a in (0, 1) for b in (0, 1)]
    return torch.stack(corners).mean(0).flatten(2).transpose(1, 2)


def check_correspondence(batch: PairBatch, t: int, is_same) -> None:
    """Compare masks and target peaks with which tokens show the same place.

    `is_same(a, b)` says for every pair of readings whether they show the same cell: [batch, a, b].
    """
    k, l = batch.k, batch.l
    fine = read_tokens(batch.fine, t, t)
    parts = read_tokens(batch.coarse, k * t, l * t)
    same = is_same(fine, parts)
    assert same.any(), "some place is seen in both crops"

    origins = batch.coarse_origin, batch.fine_origin
    fine_mask, coarse_mask = overlap_masks(*origins, t=t, k=k, l=l)
    torch.testing.assert_close(fine_mask, same.any(2))
    part_is_shared = same.any(1).reshape(-1, t, k, t, l)
    torch.testing.assert_close(coarse_mask, part_is_shared.all(4).all(2).flatten(1))
    torch.testing.assert_close(coarse_mask, part_is_shared.any(4).any(2).flatten(1))

    torch.testing.assert_close(decomposition_target(*origins, t=t, k=k, l=l).dense() == 1.0, same)

    # [fine row, part, fine col, part] → which whole of the fine crop each coarse token's parts lie in.
    of_wholes = same.reshape(-1, t // k, k, t // l, l, t, k, t, l).permute(0, 5, 7, 1, 3, 2, 4, 6, 8)
    num_shared = of_wholes.flatten(5).sum(-1).flatten(3).flatten(1, 2)
    torch.testing.assert_close(num_shared == k * l, num_shared > 0)
    torch.testing.assert_close(composition_target(*origins, t=t, k=k, l=l).dense() == 1.0, num_shared > 0)


@pytest.mark.parametrize("crops", ["fresh", "bank"])
@pytest.mark.parametrize("scale", SCALES)
def test_masks_and_targets_match_what_cells_painted_with_their_codes_show(
    build_painted: BuildShards, scale: tuple[int, int], crops: str
) -> None:
    grid = grid_params(scale, area=1.0)
    n, cell_px, step = grid.n, grid.cell_px, 14
    code = np.repeat(np.arange(n) * step, cell_px).astype(np.uint8)
    images = {
        f"{i}.png": np.stack(np.broadcast_arrays(code[:, None], code[None, :], np.uint8(40 * i)), axis=-1)
        for i in range(NUM_IMAGES)
    }
    index = build_painted(images, grid)

    def is_same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((a / step).round()[:, :, None] == (b / step).round()[:, None]).all(-1)

    for batch in load_pairs(index, grid, crops):
        check_correspondence(batch, grid.t, is_same)
        origin = (read_tokens(batch.fine, grid.t, grid.t)[:, 0] / step).round()
        torch.testing.assert_close(origin.long(), batch.fine_origin)


@pytest.mark.parametrize(("crops", "image_format"), [("fresh", "png"), ("bank", "png"), ("fresh", "jpg")])
@pytest.mark.parametrize("scale", SCALES)
def test_masks_and_targets_match_what_jittered_crops_of_a_gradient_show(
    build_painted: BuildShards, scale: tuple[int, int], crops: str, image_format: str
) -> None:
    grid = grid_params(scale, area=0.85)
    size = grid.spec.canvas_px
    ramp = np.round((np.arange(size) + 0.5) * 255 / size).astype(np.uint8)
    images = {
        f"{i}.png": np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(40 * i)), axis=-1)
        for i in range(NUM_IMAGES)
    }
    index = build_painted(images, grid, image_format=image_format)
    cell_levels, most_apart = 255 / grid.n, MOST_APART[image_format]

    def is_same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        cells_apart = (a[:, :, None] - b[:, None]).abs().amax(-1) / cell_levels
        assert not ((cells_apart > most_apart) & (cells_apart < 0.6)).any(), "same or not, nothing between"
        return cells_apart < 0.4

    for batch in load_pairs(index, grid, crops):
        check_correspondence(batch, grid.t, is_same)


def test_crops_lie_where_the_jitter_square_says(build_painted: BuildShards) -> None:
    grid = grid_params((2, 2), area=0.5)
    spec = grid.spec
    ramp = np.round((np.arange(spec.canvas_px) + 0.5) * 255 / spec.canvas_px).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(0)), axis=-1)
    index = build_painted({f"{i}.png": image for i in range(NUM_IMAGES)}, grid)
    dataset = plain_dataset(index, grid, "bank")
    for position in range(NUM_IMAGES):
        item = dataset[(0, position, 3, 0)]
        for crop, which in ((item.coarse, "coarse"), (item.fine, "fine")):
            row0, col0, row1, col1 = item.pair.window(which, spec)
            middle = crop[spec.crop_px // 2 - 1 : spec.crop_px // 2 + 1, spec.crop_px // 2 - 1 : spec.crop_px // 2 + 1]
            found = middle[..., :2].astype(float).mean((0, 1)) * spec.canvas_px / 255
            np.testing.assert_allclose(found, [(row0 + row1) / 2, (col0 + col1) / 2], atol=1.0)
