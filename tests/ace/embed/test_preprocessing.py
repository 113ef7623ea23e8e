"""Each channel of a coloured set is measured, and training, evaluation and inference normalise it alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ace.data.batches import collate
from ace.data.loader import CropDataset
from ace.embed.embedder import Embedder
from ace.embed.preprocessing import Preprocessing, normalized
from shards.core.errors import ConfigError
from shards.core.normalisation import Normalisation
from shards.core.params import GridParams, MixParams
from shards.core.records import File, Record
from shards.delivery.survey import Survey, survey_images
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.data.painted import VIEWS, build_shards_of, grid_params
from tests.ace.properties.constructed import ConstructedEncoder
from tests.support.datasets import shard_params

GRID = grid_params((2, 2), t=4, n=8, cell_px=8)
CPU = torch.device("cpu")
FOREGROUND = {"min_mean": 0.0, "min_std": 0.0}
LISTS = MixParams(weight=1.0, mean=(0.62, 0.31, 0.1), std=(0.14, 0.11, 0.08))
NUMBERS = MixParams(weight=1.0, mean=0.5, std=0.25)


def fundus(seed: int) -> np.ndarray:
    """Red, green and blue of very different levels; the first third of the rows is black."""
    rng, size = np.random.default_rng(seed), GRID.spec.canvas_px
    levels = rng.normal((159, 79, 25), (36, 28, 6), (size, size, 3))
    levels[: size // 8 * 3] = 0
    return levels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    root = tmp_path_factory.mktemp("coloured")
    return build_shards_of({f"{i}.png": fundus(i) for i in range(4)}, GRID, root, num_bank_pairs=0)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    root = tmp_path_factory.mktemp("grey")
    return build_shards_of({f"{i}.png": fundus(i)[..., 0] for i in range(4)}, GRID, root, num_bank_pairs=0)


def survey(index: ShardIndex, grid: GridParams = GRID) -> Survey:
    raw = Path(str(index.store.location)).parent / "raw"
    records = [Record(source_id=path.stem, image=File(path.name), patient=path.stem) for path in sorted(raw.iterdir())]
    return survey_images(raw, records, grid, shard_params(foreground=FOREGROUND))


def foreground_pixels(index: ShardIndex) -> np.ndarray:
    """All pixels of foreground cells [pixels, channels], found cell by cell."""
    reader, px, found = ShardReader(index), GRID.cell_px, []
    for row in range(4):
        canvas = reader.read(row).image
        for top in range(0, len(canvas), px):
            for left in range(0, len(canvas), px):
                cell = canvas[top : top + px, left : left + px]
                if cell.mean() > 0 or cell.std() > 0:
                    found.append(cell.reshape(px * px, -1))
    return np.concatenate(found).astype(np.float64)


def dataset_of(*members: tuple[ShardIndex, MixParams], in_channels: int = 3) -> CropDataset:
    values: dict[str, Any] = {"objective": "ace", "views": VIEWS, "crops": "fresh", "augment": None, "seed": 3}
    return CropDataset(list(members), GRID.spec, **values, in_channels=in_channels)


def test_a_coloured_set_is_measured_channel_by_channel_over_its_foreground(coloured: ShardIndex) -> None:
    found, pixels = survey(coloured), foreground_pixels(coloured) / 255
    assert len(pixels) == 4 * 64 * 40
    assert found.channels == 3
    np.testing.assert_allclose(found.normalisation.mean, pixels.mean(axis=0), atol=5.1e-5)
    np.testing.assert_allclose(found.normalisation.std, pixels.std(axis=0), atol=5.1e-5)
    luma = pixels @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(found.in_grey.mean, luma.mean(), atol=2e-3)  # whole grey levels
    np.testing.assert_allclose(found.in_grey.std, luma.std(), atol=2e-3)


def test_a_grey_set_has_one_mean_and_one_std(grey: ShardIndex) -> None:
    found, pixels = survey(grey), foreground_pixels(grey) / 255
    assert found.channels == 1
    assert found.normalisation == ((round(pixels.mean(), 4),), (round(pixels.std(), 4),))
    assert found.in_grey == found.normalisation


def test_after_normalisation_every_channel_has_mean_0_and_deviation_1(coloured: ShardIndex) -> None:
    pixels = foreground_pixels(coloured).astype(np.uint8)[None, :, None]
    planes = normalized(pixels, survey(coloured).normalisation, CPU)[0, :, :, 0]
    torch.testing.assert_close(planes.mean(dim=1), torch.zeros(3), atol=5e-3, rtol=0)
    torch.testing.assert_close(planes.std(dim=1), torch.ones(3), atol=5e-3, rtol=0)


@pytest.mark.parametrize("mix", [LISTS, NUMBERS])
def test_training_evaluation_and_inference_normalise_the_same_pixels_alike(
    coloured: ShardIndex, mix: MixParams
) -> None:
    dataset = dataset_of((coloured, mix))
    batch = collate([dataset[(0, number, 0, 0)] for number in range(3)])
    crops = list(batch.fine.permute(0, 2, 3, 1).numpy())
    expected = (np.stack(crops) / 255 - mix.mean) / mix.std
    trained = batch.whole()[1]
    np.testing.assert_allclose(trained.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)

    normalisation = mix.normalisation(3, "a")
    preprocessing = Preprocessing(
        crop_px=GRID.spec.crop_px,
        channels=3,
        trim_level=None,
        mean=normalisation.mean,
        std=normalisation.std,
        normalisation="a",
    )
    assert torch.equal(preprocessing.normalize(crops, CPU), trained)

    class Showing(ConstructedEncoder):
        def normalisation(self, batch: str) -> Normalisation:
            return normalisation

    encoder = Showing(nn.Identity(), GRID.spec)
    assert torch.equal(
        torch.cat(list(Embedder(encoder=encoder, batch="a", images_per_forward=2, name="e").tokens(crops))), trained
    )


def test_one_number_gives_the_bits_that_it_gave_before_lists() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = normalized(pixels, Normalisation.of(0.5056, 0.252), CPU)
    assert torch.equal(found, (torch.from_numpy(pixels).float() / 255 - 0.5056).movedim(-1, 1) / 0.252)


def test_lists_and_numbers_stand_in_one_batch(coloured: ShardIndex, grey: ShardIndex) -> None:
    dataset = dataset_of((coloured, LISTS), (grey, NUMBERS))
    batch = collate([dataset[(0, 0, 0, 0)], dataset[(1, 0, 0, 0)]])
    assert batch.mean.tolist() == pytest.approx(np.array([LISTS.mean, NUMBERS.mean * 3]))
    assert batch.std.tolist() == pytest.approx(np.array([LISTS.std, NUMBERS.std * 3]))
    for crops, found in zip((batch.coarse, batch.fine), batch.whole(), strict=True):
        for i, mix in enumerate((LISTS, NUMBERS)):
            expected = (crops[i].permute(1, 2, 0).numpy() / 255 - mix.mean) / mix.std
            np.testing.assert_allclose(found[i].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_tissue_is_only_given_between_images_whose_channels_are_all_normalised_alike(
    coloured: ShardIndex, field: str
) -> None:
    levels = getattr(LISTS, field)
    other = MixParams(**LISTS.model_dump() | {field: (*levels[:2], levels[2] + 0.01)})
    dataset = dataset_of((coloured, LISTS), (coloured, other))
    alike = collate([dataset[(0, 0, 0, 0)], dataset[(0, 1, 0, 0)]])
    differing = collate([dataset[(0, 0, 0, 0)], dataset[(1, 1, 0, 0)]])
    assert (alike.donors().tolist(), differing.donors().tolist()) == ([1, 0], [0, 1])


def test_a_coloured_set_with_one_number_trains_a_network_of_one_channel(coloured: ShardIndex) -> None:
    batch = collate([dataset_of((coloured, NUMBERS), in_channels=1)[(0, 0, 0, 0)]])
    assert (batch.mean.tolist(), batch.coarse.shape[1]) == ([[0.5]], 1)


@pytest.mark.parametrize(("in_channels", "num_levels"), [(1, 3), (3, 2)])
def test_a_list_of_another_length_than_in_channels_is_refused(
    coloured: ShardIndex, in_channels: int, num_levels: int
) -> None:
    mix = MixParams(weight=1.0, mean=0.5, std=(0.2,) * num_levels)
    with pytest.raises(ConfigError, match=rf"found a list of {num_levels} as std, expected one number.*; (set|give)"):
        dataset_of((coloured, mix), in_channels=in_channels)
