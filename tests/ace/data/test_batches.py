import io
import itertools
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ace.data.augmentation import Augmentations
from ace.data.batches import PairBatch, collate
from ace.data.erase import FILLS, Erasure
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.data.params import AugmentParams
from shards.core.errors import ConfigError
from shards.core.grid import CropPair, scale_of_step
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.data.painted import VIEWS, BuildShards, grid_params

GRID = grid_params((2, 2), (1, 2), t=4, n=9, cell_px=8)
MIX = MixParams(weight=1.0, mean=0.5, std=0.25)
AUGMENT = AugmentParams.from_params(
    {
        "where": "device",
        "brightness_contrast": {"probability": 0.5, "max_brightness": 0.2, "max_contrast": 0.3},
        "blur": {"probability": 0.5, "min_sigma_px": 0.3, "max_sigma_px": 1.5},
        "sharpen": {"probability": 0.3, "max_amount": 1.0, "sigma_px": 1.0},
        "clahe": {"probability": 0.3, "max_clip_limit": 3.0, "num_tiles": 4},
        "erase": {
            "probability": 0.5,
            "min_side": 0.5,  # some token is erased wherever the square lies
            "max_side": 0.7,
            "max_rectangles": 1,
            "max_aspect": 1.0,
            "fills": dict.fromkeys(FILLS, 1.0),
        },
    },
    "augment",
)


@pytest.fixture(scope="module")
def indexes(build_painted: BuildShards) -> list[ShardIndex]:
    """Seven grey and five coloured images of noise."""
    rng, size = np.random.default_rng(0), GRID.spec.canvas_px
    grey = {f"grey-{i}.png": rng.integers(0, 256, (size, size), dtype=np.uint8) for i in range(7)}
    colour = {f"colour-{i}.png": rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(5)}
    return [build_painted(grey, GRID), build_painted(colour, GRID)]


HOST = AugmentParams.from_params(AUGMENT.model_dump() | {"where": "host"}, "augment")


def with_only(step: str, probability: float, **changes: Any) -> AugmentParams:
    """One step of AUGMENT at this probability and with these changes, the others never."""
    values = AUGMENT.model_dump()
    for name in values.keys() - {"where"}:
        values[name] |= {"probability": probability, **changes} if name == step else {"probability": 0.0}
    return AugmentParams.from_params(values, "augment")


def dataset_of(indexes: list[ShardIndex], **changes) -> CropDataset:
    mixes = changes.pop("mixes", [MIX] * len(indexes))
    values = {
        "objective": "ace",
        "views": VIEWS,
        "crops": "fresh",
        "augment": AUGMENT,
        "in_channels": 1,
        "seed": 3,
    } | changes
    return CropDataset(list(zip(indexes, mixes, strict=True)), GRID.spec, **values)


def sampler_of(dataset: CropDataset, **changes) -> StepSampler:
    values = {"batch_size": 2, "rank": 0, "world_size": 1, "first_step": 0, "epochs": 3} | changes
    return StepSampler(dataset, **values)


def load(sampler: StepSampler, num_workers: int = 0) -> list[PairBatch]:
    return list(build_loader(sampler, num_workers=num_workers, is_pinned=False))


def assert_same(first: list[PairBatch], second: list[PairBatch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert (one.keys, one.k, one.l) == (other.keys, other.k, other.l)
        for name in ("coarse", "fine", "coarse_origin", "fine_origin", "mean", "std", "coarse_shown", "fine_shown"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert_same_records(one.augmentations, other.augmentations)


def assert_same_records(one: Augmentations | None, other: Augmentations | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        np.testing.assert_array_equal(one.on_host, other.on_host)
        np.testing.assert_array_equal(one.on_device.numpy(), one.on_host)
        assert one.erasures == other.erasures


def test_a_batch_has_one_scale_that_of_its_step(indexes: list[ShardIndex]) -> None:
    batches = load(sampler_of(dataset_of(indexes)))
    expected = [(scale.k, scale.l) for scale in (scale_of_step(GRID.spec, 3, step) for step in range(len(batches)))]
    assert [(batch.k, batch.l) for batch in batches] == expected
    assert len(set(expected)) == 2


def test_an_epoch_shows_each_sample_once_and_the_next_epoch_in_another_order(indexes: list[ShardIndex]) -> None:
    sampler = sampler_of(dataset_of(indexes))
    batches = load(sampler)
    assert sampler.steps_per_epoch == 6
    assert len(batches) == len(sampler) == sampler.num_steps == 18
    epochs = [list(itertools.chain(*(b.keys for b in batches[6 * e : 6 * e + 6]))) for e in range(3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("first_step", [0, 1, 5, 6, 7, 17])
def test_a_resumed_run_sees_the_rest_of_what_an_uninterrupted_one_sees(
    indexes: list[ShardIndex], first_step: int
) -> None:
    dataset = dataset_of(indexes)
    assert_same(load(sampler_of(dataset, first_step=first_step)), load(sampler_of(dataset))[first_step:])


def test_skipped_steps_are_not_decoded(indexes: list[ShardIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = ShardReader.read, []
    monkeypatch.setattr(ShardReader, "read", lambda self, row: reads.append(row) or read(self, row))
    load(sampler_of(dataset_of(indexes), first_step=16))
    assert len(reads) == 4


@pytest.mark.slow
def test_the_batches_do_not_depend_on_the_number_of_processes_and_lie_in_shared_memory_if_there_are_any(
    indexes: list[ShardIndex],
) -> None:
    sampler = sampler_of(dataset_of(indexes), epochs=1)
    ours, theirs = load(sampler, num_workers=2), load(sampler)
    assert_same(ours, theirs)
    assert all(batch.coarse.is_shared() and batch.fine.is_shared() for batch in ours)


class Tensors(pickle.Pickler):
    """A pickler that lists the tensors it meets."""

    def __init__(self) -> None:
        self.file, self.met = io.BytesIO(), []
        super().__init__(self.file)

    def reducer_override(self, value: Any) -> Any:
        self.met += [value.dtype] if isinstance(value, torch.Tensor) else []
        return NotImplemented


def test_only_pixels_go_to_another_process_as_tensors(indexes: list[ShardIndex]) -> None:
    batch, *_ = load(sampler_of(dataset_of(indexes)))
    pickler = Tensors()
    pickler.dump(batch)
    assert pickler.met == [torch.uint8, torch.uint8], "each tensor costs a file and a handshake"
    assert_same([pickle.loads(pickler.file.getvalue())], [batch])


def test_ranks_share_steps_and_scales_but_no_sample(indexes: list[ShardIndex]) -> None:
    dataset = dataset_of(indexes)
    ranks = [load(sampler_of(dataset, rank=rank, world_size=2, epochs=1)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 3
    assert [(b.k, b.l) for b in ranks[0]] == [(b.k, b.l) for b in ranks[1]]
    keys = [set(itertools.chain(*(b.keys for b in rank))) for rank in ranks]
    assert len(keys[0]) == len(keys[1]) == 6
    assert not keys[0] & keys[1]


def test_a_sample_gets_other_crops_and_augmentation_at_every_step_but_the_same_at_the_same(
    indexes: list[ShardIndex],
) -> None:
    dataset = dataset_of(indexes)
    first, same = (dataset[(0, 2, 4, 0)] for _ in range(2))
    np.testing.assert_array_equal(first.coarse, same.coarse)
    assert first.pair == same.pair
    assert (first.coarse_augmentation, first.fine_augmentation) == (same.coarse_augmentation, same.fine_augmentation)
    assert len({dataset[(0, 2, step, 0)].coarse_augmentation for step in range(8)}) > 4
    assert len({dataset[(0, 2, step, 0)].pair.jitter for step in range(8)}) == 8
    assert dataset[(0, 2, 4, 0)].pair.jitter != dataset[(0, 3, 4, 0)].pair.jitter
    assert dataset_of(indexes, seed=4)[(0, 2, 4, 0)].pair.jitter != first.pair.jitter


@pytest.mark.parametrize("only", ["brightness_contrast", "erase"])
@pytest.mark.parametrize("where", ["device", "host"])
def test_augmentation_is_drawn_for_each_crop_by_itself(indexes: list[ShardIndex], only: str, where: str) -> None:
    params = with_only(only, 0.5).model_copy(update={"where": where})
    plain, augmented = dataset_of(indexes, augment=None), dataset_of(indexes, augment=params)
    changed = {"coarse": set(), "fine": set()}
    for step in range(60):
        before, after = (collate([dataset[(0, 0, step, 0)]]).augmented(params) for dataset in (plain, augmented))
        assert torch.equal(before.coarse_origin, after.coarse_origin)
        for which, plain_crop, crop in zip(changed, before.seen(), after.seen(), strict=True):
            if not torch.equal(plain_crop, crop):
                changed[which].add(step)
    assert changed["coarse"] - changed["fine"]
    assert changed["fine"] - changed["coarse"]


def test_tokens_are_visible_where_their_pixels_are_not_erased(indexes: list[ShardIndex]) -> None:
    params = with_only("erase", 1.0, fills={**dict.fromkeys(FILLS, 0.0), "black": 1.0})
    batch = load(sampler_of(dataset_of(indexes, augment=params)))[0].augmented(params)
    for crops, visible in zip(batch.erased.unbind(1), (batch.coarse_visible, batch.fine_visible), strict=True):
        share_black = torch.nn.functional.avg_pool2d((crops == 0).float(), GRID.cell_px).flatten(1)
        assert (~visible).any(1).all()
        assert (share_black[~visible] >= 0.5).all()
        assert (share_black[visible] < 0.6).all(), "less than half of a token, and what the noise has of black pixels"
    (batch, *_) = load(sampler_of(dataset_of(indexes, augment=None)))
    assert (batch.coarse_visible & batch.fine_visible).all()


def inside(erasure: Erasure | None) -> torch.Tensor:
    """Pixels of a crop in a rectangle."""
    is_inside = torch.zeros(GRID.spec.crop_px, GRID.spec.crop_px, dtype=torch.bool)
    for row, col, height, width in () if erasure is None else erasure.rectangles:
        is_inside[row : row + height, col : col + width] = True
    return is_inside


@pytest.mark.parametrize("where", ["device", "host"])
def test_the_whole_and_the_erased_crop_have_one_augmentation_and_differ_inside_the_rectangles_alone(
    indexes: list[ShardIndex], where: str
) -> None:
    erase = AUGMENT.erase.model_dump() | {"max_rectangles": 3, "max_aspect": 2.0, "min_side": 0.2}
    params = AugmentParams.from_params(AUGMENT.model_dump() | {"where": where, "erase": erase}, "augment")
    fills = set()
    for waiting in load(sampler_of(dataset_of(indexes, augment=params), epochs=4)):
        records = waiting.augmentations
        if records is None:
            continue
        unerased = replace(records, erasures=[[None, None] for _ in records.erasures])
        batch, other = (item.augmented(params) for item in (waiting, replace(waiting, augmentations=unerased)))
        assert other.erased is None
        assert torch.equal(batch.coarse, other.coarse)
        assert torch.equal(batch.fine, other.fine)
        whole = torch.stack([batch.coarse, batch.fine], 1)
        seen = whole if batch.erased is None else batch.erased
        for sample, crop in itertools.product(range(len(batch)), range(2)):
            erasure = records.erasures[sample][crop]
            is_inside = inside(erasure)
            is_changed = (seen[sample, crop] != whole[sample, crop]).any(0)
            assert not (is_changed & ~is_inside).any()
            assert (is_changed & is_inside).sum() >= 0.9 * is_inside.sum(), "some pixels had the fill's level"
            shares = torch.nn.functional.avg_pool2d((~is_inside).float()[None], GRID.cell_px).flatten()
            assert torch.equal(batch.shown()[crop][sample], shares)
            fills |= {erasure.fill} if erasure is not None else {None}
        assert torch.equal(batch.shown()[0], batch.coarse_shown)
        for crop, visible in enumerate((batch.coarse_visible, batch.fine_visible)):
            assert torch.equal(visible, batch.shown()[crop] > 0.5)
            assert torch.equal(visible, batch.visible()[crop])
            for normalized, levels in ((batch.whole(), whole), (batch.seen(), seen)):
                torch.testing.assert_close(normalized[crop], (levels[:, crop] / 255 - 0.5) / 0.25)
    assert fills == {None, *FILLS}


@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_batch_augmented_where_it_lies_is_one_of_crops_augmented_by_the_loader(
    indexes: list[ShardIndex], in_channels: int
) -> None:
    """Of grey and coloured images; a grey level off where the loader's library does not round a product."""
    late, early = (
        load(sampler_of(dataset_of(indexes, augment=augment, in_channels=in_channels, seed=5), epochs=2))
        for augment in (AUGMENT, HOST)
    )
    for waiting, finished in zip(late, early, strict=True):
        batch, done = waiting.augmented(AUGMENT), finished.augmented(HOST)
        assert batch.augmentations is done.augmentations is None
        assert torch.equal(finished.coarse, done.coarse), "nothing is left but to erase"
        assert (batch.erased is None) == (done.erased is None)
        for name in ("coarse", "fine") if batch.erased is None else ("coarse", "fine", "erased"):
            difference = (getattr(batch, name).int() - getattr(done, name)).abs()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 1e-3
            assert getattr(batch, name).is_contiguous()
        assert torch.equal(batch.coarse_shown, done.coarse_shown)
        assert torch.equal(batch.fine_shown, done.fine_shown)
    assert any(not torch.equal(batch.augmented(AUGMENT).coarse, batch.coarse) for batch in late)


def test_the_parts_of_a_batch_are_augmented_as_the_whole_is(indexes: list[ShardIndex]) -> None:
    for batch in load(sampler_of(dataset_of(indexes), batch_size=4, epochs=1)):
        whole, parts = batch.augmented(AUGMENT), [part.augmented(AUGMENT) for part in batch.split(2)]
        for name in ("coarse", "fine"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for number, crops in enumerate(whole.seen()):
            assert torch.equal(torch.cat([part.seen()[number] for part in parts]), crops)
        for part, again in zip(parts, whole.split(2), strict=True):
            assert all(torch.equal(*both) for both in zip(part.seen(), again.seen(), strict=True))


def test_a_batch_takes_its_records_along_to_another_device(indexes: list[ShardIndex]) -> None:
    (batch, *_) = load(sampler_of(dataset_of(indexes, augment=with_only("blur", 1.0))))
    moved = batch.to(torch.device("meta"))
    assert moved.augmentations is not None
    assert moved.augmentations.on_device.is_meta
    np.testing.assert_array_equal(moved.augmentations.on_host, batch.augmentations.on_host)
    assert moved.augmented(AUGMENT).coarse.is_meta


def test_crops_that_are_not_augmented_yet_are_not_given_to_networks(indexes: list[ShardIndex]) -> None:
    params = with_only("erase", 1.0)
    (batch, *_) = load(sampler_of(dataset_of(indexes, augment=params)))
    for normalized in (batch.whole, batch.seen):
        with pytest.raises(ValueError, match="not augmented yet"):
            normalized()
    done = batch.augmented(params)
    assert [crops.shape for crops in (*done.whole(), *done.seen())] == [batch.coarse.shape] * 4


def test_bank_crops_are_those_stored_with_the_sample(indexes: list[ShardIndex]) -> None:
    dataset = dataset_of(indexes, crops="bank")
    sample = ShardReader(indexes[0]).read(int(indexes[0].select("train")[1]))
    stored = [CropPair.from_json(item) for item in sample.meta["grid"]["bank"]]
    drawn = {step: dataset[(0, 1, step, 0)].pair for step in range(100)}
    assert set(drawn.values()) == set(stored)
    for step, pair in drawn.items():
        scale = scale_of_step(GRID.spec, dataset.seed, step)
        assert (pair.k, pair.l) == (scale.k, scale.l)


def test_an_empty_bank_says_what_to_do(build_painted: BuildShards) -> None:
    size = GRID.spec.canvas_px
    index = build_painted({"a.png": np.zeros((size, size), np.uint8)}, GRID, num_bank_pairs=0)
    with pytest.raises(ConfigError, match=r"no stored crop pair for \(k, l\) = .*set crops to fresh, or raise shard"):
        dataset_of([index], crops="bank")[(0, 0, 0, 0)]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_grey_and_coloured_images_batch_together(indexes: list[ShardIndex], in_channels: int) -> None:
    dataset = dataset_of(indexes, in_channels=in_channels, augment=None)
    batch = collate([dataset[(0, 0, 0, 0)], dataset[(1, 0, 0, 0)]])
    px = GRID.spec.crop_px
    assert batch.coarse.shape == batch.fine.shape == (2, in_channels, px, px)
    assert batch.coarse.dtype == torch.uint8
    if in_channels == 3:
        assert torch.equal(batch.fine[0, 0], batch.fine[0, 2]), "grey is repeated"
        assert not torch.equal(batch.fine[1, 0], batch.fine[1, 2]), "colour is kept"


def test_each_sample_is_normalised_with_its_own_shard_sets_mean_and_std(indexes: list[ShardIndex]) -> None:
    mixes = [MixParams(weight=1.0, mean=0.5, std=0.25), MixParams(weight=1.0, mean=0.2, std=0.1)]
    dataset = dataset_of(indexes, mixes=mixes, augment=None)
    batch = collate([dataset[(0, 0, 0, 0)], dataset[(1, 0, 0, 0)]]).to(torch.device("cpu"))
    for crops, normalized in zip((batch.coarse, batch.fine), batch.whole(), strict=True):
        assert normalized.dtype == torch.float32
        for i, mix in enumerate(mixes):
            torch.testing.assert_close(normalized[i], (crops[i] / 255 - mix.mean[0]) / mix.std[0])


def test_mix_weights_decide_how_often_a_shard_set_is_seen(indexes: list[ShardIndex]) -> None:
    mixes = [MixParams(weight=2.0, mean=0.5, std=0.25), MixParams(weight=0.0, mean=0.5, std=0.25)]
    sampler = sampler_of(dataset_of(indexes, mixes=mixes), epochs=1)
    sets = [shard_set for step in sampler for shard_set, _, _, _ in step]
    assert sets == [0] * 14


def test_shards_of_another_grid_are_refused_with_both_grids_named(indexes: list[ShardIndex]) -> None:
    other = grid_params((2, 2), t=4, n=10, cell_px=8).spec
    with pytest.raises(ConfigError, match=r"built with the grid .*n=9, .*training uses .*n=10, .*dvc repro shard@"):
        CropDataset(
            [(indexes[0], MIX)], other, objective="ace", views=VIEWS, crops="fresh", augment=None, in_channels=1, seed=0
        )


def test_too_few_images_for_one_batch_are_refused(indexes: list[ShardIndex]) -> None:
    with pytest.raises(ConfigError, match="12 training samples"):
        sampler_of(dataset_of(indexes), batch_size=13)


def test_the_dataset_can_be_sent_to_another_process(indexes: list[ShardIndex]) -> None:
    dataset = dataset_of(indexes)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[(1, 2, 3, 0)].fine, dataset[(1, 2, 3, 0)].fine)
