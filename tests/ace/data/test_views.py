"""Where views lie, and what an epoch of each objective shows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.data.batches import PairBatch, ViewBatch
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.data.objectives import spec_of_epoch
from ace.data.params import AugmentParams, CentredViewsParams, RandomViewsParams
from ace.data.views import centered_windows, random_windows
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale, scale_of_step
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex
from tests.ace.data.painted import VIEWS, BuildShards, grid_params

GRID = grid_params((1, 1), (2, 2), (1, 2), t=4, n=9, cell_px=8, area=1.0)
CANVAS_PX = GRID.spec.canvas_px
ERASE = {
    "probability": 0.5,
    "min_side": 0.5,
    "max_side": 0.7,
    "max_rectangles": 1,
    "max_aspect": 1.0,
    "fills": {"black": 1.0, "mean": 0.0, "grey": 0.0, "noise": 0.0, "tissue": 0.0},
}
OFF = {
    "where": "device",
    "brightness_contrast": {"probability": 0.0, "max_brightness": 0.2, "max_contrast": 0.3},
    "blur": {"probability": 0.0, "min_sigma_px": 0.3, "max_sigma_px": 1.5},
    "sharpen": {"probability": 0.0, "max_amount": 1.0, "sigma_px": 1.0},
    "clahe": {"probability": 0.0, "max_clip_limit": 3.0, "num_tiles": 4},
}


@pytest.fixture(scope="module")
def index(build_painted: BuildShards) -> ShardIndex:
    """Six ramps: red tells the row of the canvas, green the column; no pixel is black in all channels."""
    ramp = np.round((np.arange(CANVAS_PX) + 0.5) * 255 / CANVAS_PX).astype(np.uint8)
    blue = [np.uint8(40 + 30 * number) for number in range(6)]
    image = [np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], level), axis=-1) for level in blue]
    return build_painted({f"{number}.png": pixels for number, pixels in enumerate(image)}, GRID)


def load(
    index: ShardIndex,
    objective: str,
    *,
    epochs: int = 3,
    batch_size: int = 2,
    first_step: int = 0,
    num_workers: int = 0,
    augment: AugmentParams | None = None,
) -> list[PairBatch | ViewBatch]:
    """Three steps an epoch, each of two of the six images; other sizes make fewer."""
    mix = MixParams(weight=1.0, mean=0.5, std=0.25)
    values = {"objective": objective, "views": VIEWS, "crops": "fresh", "augment": augment}
    dataset = CropDataset([(index, mix)], GRID.spec, **values, in_channels=3, seed=3)
    sampler = StepSampler(dataset, batch_size=batch_size, rank=0, world_size=1, first_step=first_step, epochs=epochs)
    return list(build_loader(sampler, num_workers=num_workers, is_pinned=False))


@given(st.integers(0, 2**32), st.integers(16, 2048), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_random_views_are_two_squares_on_the_canvas_within_their_areas(
    seed: int, canvas_px: int, one: float, other: float
) -> None:
    params = RandomViewsParams(min_area=min(one, other), max_area=max(one, other))
    windows = random_windows(canvas_px, params, np.random.default_rng(seed))
    assert len(windows) == 2
    for row0, col0, row1, col1 in windows:
        assert row1 - row0 == pytest.approx(col1 - col0)
        assert params.min_area - 1e-9 <= (row1 - row0) ** 2 / canvas_px**2 <= params.max_area + 1e-9
        assert min(row0, col0) >= 0
        assert max(row1, col1) <= canvas_px * (1 + 1e-12)


def test_random_views_are_uniform_in_area_and_place_and_drawn_independently() -> None:
    params, rng = RandomViewsParams(min_area=0.2, max_area=0.6), np.random.default_rng(0)
    drawn = np.array([random_windows(100, params, rng) for _ in range(4000)])
    sides = drawn[..., 2] - drawn[..., 0]
    areas = (sides / 100) ** 2
    places = drawn[..., :2] / (100 - sides)[..., None]
    for values, low, high in ((areas, 0.2, 0.6), (places[..., 0], 0, 1), (places[..., 1], 0, 1)):
        share, _ = np.histogram(values, bins=4, range=(low, high))
        np.testing.assert_allclose(share / values.size, 0.25, atol=0.03)
        assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.06


@given(
    st.integers(0, 2**32),
    st.integers(16, 2048),
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6).map(lambda sides: sorted(sides, reverse=True)),
)
def test_centred_views_have_their_sides_one_centre_and_lie_on_the_canvas(
    seed: int, canvas_px: int, sides: list[float]
) -> None:
    params = CentredViewsParams(sides=tuple(sides), num_teacher_views=1)
    windows = np.array(centered_windows(canvas_px, params, np.random.default_rng(seed)))
    np.testing.assert_allclose(windows[:, 2:] - windows[:, :2], np.repeat(sides, 2).reshape(-1, 2) * canvas_px)
    centers = (windows[:, 2:] + windows[:, :2]) / 2
    np.testing.assert_allclose(centers, np.broadcast_to(centers[0], centers.shape))
    assert windows.min() >= -1e-9
    assert windows.max() <= canvas_px + 1e-9


def test_the_centre_is_uniform_where_the_largest_view_fits() -> None:
    params, rng = VIEWS.centred, np.random.default_rng(0)
    windows = np.array([centered_windows(100, params, rng)[0] for _ in range(4000)])
    for centers in ((windows[:, 0] + windows[:, 2]) / 2, (windows[:, 1] + windows[:, 3]) / 2):
        share, _ = np.histogram(centers, bins=4, range=(40, 60))
        np.testing.assert_allclose(share / len(centers), 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (RandomViewsParams, {"min_area": 0.8, "max_area": 0.3}, r"min_area 0\.8 is above max_area 0\.3"),
        (CentredViewsParams, {"sides": [0.4, 0.8], "num_teacher_views": 1}, "from the largest to the smallest"),
        (CentredViewsParams, {"sides": [0.8, 0.4], "num_teacher_views": 3}, "num_teacher_views is 3 and sides has 2"),
    ],
)
def test_views_that_cannot_be_are_refused(section, values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        section.from_params(values, "views")


def test_a_view_shows_its_window_of_the_canvas(index: ShardIndex) -> None:
    """The middle of each view is read off the ramps: centred views of a sample agree, random ones do not."""
    half = GRID.spec.crop_px // 2

    def middles(batch: ViewBatch) -> np.ndarray:
        middle = batch.views[..., :2, half - 1 : half + 1, half - 1 : half + 1].float().mean((-1, -2))
        return middle.numpy() * CANVAS_PX / 255

    def spans(batch: ViewBatch) -> np.ndarray:
        """Side of every view along both axes, as a fraction of the canvas, from its first and last pixels."""
        rows, cols = batch.views[:, :, 0].float(), batch.views[:, :, 1].float()
        size = GRID.spec.crop_px
        both = rows[:, :, -1].mean(-1) - rows[:, :, 0].mean(-1), cols[..., -1].mean(-1) - cols[..., 0].mean(-1)
        return torch.stack(both, -1).numpy() / 255 * size / (size - 1)

    for batch in load(index, "ace_v2", epochs=1):
        assert isinstance(batch, ViewBatch)
        assert batch.views.shape == (2, 3, 3, GRID.spec.crop_px, GRID.spec.crop_px)
        assert batch.num_teacher_views == 2
        centers = middles(batch)
        np.testing.assert_allclose(centers, np.broadcast_to(centers[:, :1], centers.shape), atol=0.7)
        expected = np.broadcast_to(np.array(VIEWS.centred.sides)[:, None], (2, 3, 2))
        np.testing.assert_allclose(spans(batch), expected, atol=0.03)
    for batch in load(index, "dino", epochs=1):
        assert isinstance(batch, ViewBatch)
        assert batch.views.shape[1] == batch.num_teacher_views == 2
        assert abs(middles(batch)[:, 0] - middles(batch)[:, 1]).max() > 1
        areas = spans(batch).prod(-1)
        assert (areas > 0.3 - 0.05).all()
        assert (areas < 0.8 + 0.05).all()


def test_each_epoch_of_ace_v2_shows_what_its_number_says(index: ShardIndex) -> None:
    batches = load(index, "ace_v2", epochs=6)
    for step, batch in enumerate(batches):
        phase = (step // 3) % 3
        assert isinstance(batch, ViewBatch) == (phase == 0)
        if isinstance(batch, PairBatch):
            assert ((batch.k, batch.l) == (1, 1)) == (phase == 1)
    drawn = {(b.k, b.l) for b in batches if isinstance(b, PairBatch)}
    assert drawn == {(1, 1), (2, 2), (1, 2)}


def test_ace_shows_pairs_and_dino_views_in_every_epoch(index: ShardIndex) -> None:
    assert all(isinstance(batch, PairBatch) for batch in load(index, "ace"))
    assert all(isinstance(batch, ViewBatch) for batch in load(index, "dino"))


def test_the_scales_of_the_third_phase_keep_the_grids_weights() -> None:
    scales = (Scale(1, 1, 5.0), Scale(2, 2, 3.0), Scale(1, 2, 1.0))
    spec = spec_of_epoch(
        "ace_v2", GridSpec(n=9, cell_px=8, t=4, scales=scales, min_overlap=0.5, min_jitter_area=0.85), epoch=5
    )
    assert spec is not None
    drawn = [scale_of_step(spec, 0, step) for step in range(2000)]
    assert np.mean([(scale.k, scale.l) == (2, 2) for scale in drawn]) == pytest.approx(0.75, abs=0.04)
    assert not any((scale.k, scale.l) == (1, 1) for scale in drawn)


@pytest.mark.parametrize("scales", [(Scale(1, 1, 1.0),), (Scale(1, 1, 1.0), Scale(2, 2, 0.0))])
def test_ace_v2_without_a_scale_to_compose_at_is_refused_from_the_start(scales: tuple[Scale, ...]) -> None:
    spec = GridSpec(n=9, cell_px=8, t=4, scales=scales, min_overlap=0.5, min_jitter_area=0.85)
    for epoch in range(3):
        with pytest.raises(
            ConfigError, match=r"ace_v2 needs a scale .*grid\.scales has only 1x1 \(weight 1\).*add one"
        ):
            spec_of_epoch("ace_v2", spec, epoch)
    assert spec_of_epoch("ace", spec, 0) == spec
    assert spec_of_epoch("dino", spec, 0) is None


def assert_same(first: list[PairBatch | ViewBatch], second: list[PairBatch | ViewBatch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert type(one) is type(other)
        assert vars(one).keys() == vars(other).keys()
        assert (one.augmentations is None) == (other.augmentations is None)
        if one.augmentations is not None and other.augmentations is not None:
            np.testing.assert_array_equal(one.augmentations.on_host, other.augmentations.on_host)
            assert one.augmentations.erasures == other.augmentations.erasures
        for name in vars(one).keys() - {"augmentations"}:
            value = getattr(one, name)
            same = torch.equal(value, getattr(other, name)) if torch.is_tensor(value) else value == getattr(other, name)
            assert same, name


@pytest.mark.slow
def test_a_resumed_run_and_other_processes_see_the_same_views_and_pairs(index: ShardIndex) -> None:
    augment = AugmentParams.from_params({**OFF, "erase": ERASE}, "augment")
    whole = load(index, "ace_v2", augment=augment)
    assert_same(load(index, "ace_v2", augment=augment, num_workers=1), whole)
    for first_step in (1, 4, 8):
        assert_same(load(index, "ace_v2", augment=augment, first_step=first_step), whole[first_step:])


def test_erased_tokens_of_a_view_are_marked_and_each_view_is_erased_by_itself(index: ShardIndex) -> None:
    augment = AugmentParams.from_params({**OFF, "erase": ERASE}, "augment")
    plain, erased = load(index, "ace_v2", epochs=1), load(index, "ace_v2", epochs=1, augment=augment)
    states = set()
    for before, waiting in zip(plain, erased, strict=True):
        batch = waiting.augmented(augment)
        assert isinstance(before, ViewBatch)
        assert isinstance(batch, ViewBatch)
        assert (before.view_shown == 1).all()
        assert torch.equal(batch.views, waiting.views), "the teacher's views stay whole"
        seen = batch.views if batch.erased is None else batch.erased
        black = (seen == 0).all(2).float().flatten(0, 1)[:, None]
        share = torch.nn.functional.avg_pool2d(black, GRID.cell_px).reshape(batch.view_shown.shape)
        torch.testing.assert_close(batch.view_shown, 1 - share)
        assert torch.equal(torch.stack(batch.visible(), 1), share < 0.5)
        assert all(torch.equal(*both) for both in zip(batch.shown(), batch.view_shown.unbind(1), strict=True))
        states |= {tuple(sample.all(-1).tolist()) for sample in batch.view_shown == 1}
    assert len(states) > 2, "of a sample's views some are erased, others not"


@pytest.mark.parametrize("objective", ["ace", "dino", "ace_v2"])
def test_tissue_in_a_crop_or_view_is_what_the_same_one_of_the_partner_shows_there(
    index: ShardIndex, objective: str
) -> None:
    """Partners by hand: samples 0 and 1, 2 and 3, 4 and 5."""
    erase = {**ERASE, "fills": {**ERASE["fills"], "tissue": 1.0}}
    augment = AugmentParams.from_params({**OFF, "erase": erase}, "augment")
    drawn = set()
    for waiting in load(index, objective, epochs=9, batch_size=6, augment=augment):
        batch, erasures = waiting.augmented(augment), waiting.augmentations.erasures
        whole = batch.views if isinstance(batch, ViewBatch) else torch.stack([batch.coarse, batch.fine], 1)
        for sample, crop in itertools.product(range(6), range(whole.shape[1])):
            erasure, expected = erasures[sample][crop], whole[sample, crop].clone()
            is_tissue = erasure is not None and erasure.fill == "tissue"
            partner = whole[sample + 1 if sample % 2 == 0 else sample - 1, crop]
            for row, col, height, width in () if erasure is None else erasure.rectangles:
                inside = (slice(None), slice(row, row + height), slice(col, col + width))
                expected[inside] = partner[inside] if is_tissue else 0
            assert torch.equal(batch.erased[sample, crop], expected)
            assert batch.donated[sample, crop] == is_tissue
            drawn.add((erasure and erasure.fill, crop))
    num_crops = 3 if objective == "ace_v2" else 2
    assert drawn == set(itertools.product((None, "black", "tissue"), range(num_crops)))


def test_parts_of_a_batch_of_views_are_augmented_as_the_whole_is(index: ShardIndex) -> None:
    steps = {name: step | {"probability": 0.5} for name, step in (OFF | {"erase": ERASE}).items() if name != "where"}
    params = AugmentParams.from_params({"where": "device", **steps}, "augment")
    for batch in load(index, "ace_v2", epochs=1, augment=params):
        assert isinstance(batch, ViewBatch)
        whole, parts = batch.augmented(params), [part.augmented(params) for part in batch.split(2)]
        assert not torch.equal(whole.views, batch.views)
        assert torch.equal(torch.cat([part.views for part in parts]), whole.views)
        for number, view in enumerate(whole.seen()):
            assert torch.equal(torch.cat([part.seen()[number] for part in parts]), view)
        for normalized in (batch.whole, batch.seen):
            with pytest.raises(ValueError, match="not augmented yet"):
                normalized()


def test_a_batch_of_views_splits_and_moves_like_one_of_pairs(index: ShardIndex) -> None:
    (batch, *_) = load(index, "dino", epochs=1)
    assert isinstance(batch, ViewBatch)
    first, second = batch.to(torch.device("cpu")).split(2)
    assert len(first) == len(second) == 1
    assert first.keys + second.keys == batch.keys
    assert torch.equal(torch.cat([first.views, second.views]), batch.views)
    assert first.num_teacher_views == batch.num_teacher_views
    for number, view in enumerate(batch.whole()):
        torch.testing.assert_close(view, (batch.views[:, number] / 255 - 0.5) / 0.25)
