"""What networks are shown: crops where they should lie, turned and mirrored, with the probabilities of ten averaged."""

import numpy as np
import pytest
import torch
from torch import nn

from ace.downstream.parts import divide
from ace.downstream.shown import ShownPart
from ace.downstream.views import View, center_view, draw_view, show, ten_views
from shards.reading.reader import Sample, ShardIndex, ShardReader
from tests.ace.downstream.labelled import encoder, sees, task


@pytest.fixture
def sample(index: ShardIndex) -> Sample:
    return ShardReader(index).read(0)


def test_views_of_their_own_size_are_parts_of_the_canvas(sample: Sample) -> None:
    canvas = sample.image
    px = len(canvas)  # 64
    side, size = 0.75, 48
    shown = show(sample, ten_views(side), size, 1, px)
    corners = [(0, 0), (0, 16), (16, 0), (16, 16), (8, 8)]
    for crop, (row, col) in zip(shown[:5], corners, strict=True):
        assert np.array_equal(crop, canvas[row : row + size, col : col + size])
    for crop, mirrored in zip(shown[:5], shown[5:], strict=True):
        assert np.array_equal(crop[:, ::-1], mirrored)


def test_a_view_is_turned_about_its_middle_counter_clockwise(sample: Sample) -> None:
    px = len(sample.image)
    (turned,) = show(sample, [View(row=0, col=0, side=1, angle_deg=90)], px, 1, px)
    assert np.array_equal(turned, np.rot90(sample.image))


def test_drawn_views_lie_on_the_canvas_and_are_as_strong_as_allowed() -> None:
    params = task(shown={"mirror_probability": 0.5, "max_rotation_deg": 10.0}).params.shown
    rng = np.random.default_rng(0)
    views = [draw_view(params, rng) for _ in range(400)]
    for view in views:
        row0, col0, row1, col1 = view.window(100)
        assert min(row0, col0) >= 0
        assert max(row1, col1) <= 100 + 1e-9
        assert row1 - row0 == pytest.approx(87.5)
    assert max(abs(view.angle_deg) for view in views) == pytest.approx(10, abs=0.5)
    assert 0.4 < np.mean([view.is_mirrored for view in views]) < 0.6
    assert 0.4 < np.mean([view.levels is not None for view in views]) < 0.6
    assert max(abs(view.levels.shift) for view in views if view.levels) == pytest.approx(25.5, abs=2)


def test_ten_crops_are_answered_by_the_mean_probability_of_ten(index: ShardIndex) -> None:
    own, seeing = task(labels=["bright", "doubted"]), encoder(sees)
    part = divide(index, own.params).test
    shown = ShownPart(part, seeing, num_threads=2)
    torch.manual_seed(1)
    network = own.network(seeing).eval()
    nn.init.normal_(network.head.weight, std=5.0)
    with torch.inference_mode():
        whole = own.answer(network, shown, is_final=True)["probabilities"]
        single = [
            torch.cat([network(images[:, 0]).sigmoid() for images in shown.images([view])]).numpy()
            for view in ten_views(0.875)
        ]
        middle = own.answer(network, shown, is_final=False)["probabilities"]
    np.testing.assert_allclose(whole, np.mean(single, axis=0), atol=1e-6)
    np.testing.assert_allclose(middle, single[4], atol=1e-6)
    assert np.abs(whole - middle).max() > 1e-4
    assert center_view(0.875) == ten_views(0.875)[4]
