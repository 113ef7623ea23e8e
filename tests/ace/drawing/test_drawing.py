import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.drawing.pictures import found_tile, heat, label_map, place_colour
from ace.drawing.plots import (
    curve_panels,
    density_plot,
    error_curves,
    kernel_density,
    roc_panels,
    running_mean,
    scatter_panels,
)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_a_density_integrates_to_one(values: list[float]) -> None:
    grid = np.linspace(-6, 6, 6001)
    assert np.trapezoid(kernel_density(np.array(values), grid), grid) == pytest.approx(1, abs=0.02)


def test_a_constant_has_a_density_with_its_peak_there() -> None:
    grid = np.linspace(0, 1, 1001)
    assert grid[kernel_density(np.full(30, 0.7), grid).argmax()] == pytest.approx(0.7)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 9))
def test_a_running_mean_is_the_mean_of_the_rows_around(values: list[float], width: int) -> None:
    found = running_mean(np.array(values), width)
    half = width // 2
    expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_every_logged_quantity_gets_a_panel_and_counters_get_none() -> None:
    rows = [{"step": s, "epoch": 0, "images": s, "loss": 1.0 + s, "unheard_of": 2.0, "once": 1.0} for s in range(5)]
    for row in rows[1:]:
        del row["once"]
    panels = curve_panels(rows, {"loss": "total loss", "absent": "not logged"}, smoothing=3)
    assert len(panels) == 2
    assert "total loss" in panels[0]
    assert "unheard_of" in panels[1]


def test_places_far_apart_have_colours_far_apart() -> None:
    corners = [place_colour(np.array(place)) for place in ((0.1, 0.1), (0.1, 0.9), (0.9, 0.1), (0.9, 0.9))]
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in corners])
    distances = np.abs(channels[:, None] - channels).sum(-1)[~np.eye(4, dtype=bool)]
    assert distances.min() > 100


def test_heat_is_brightest_where_the_value_is_largest() -> None:
    values = np.array([[0.1, 0.5], [0.9, 0.2]])
    assert np.unravel_index(heat(values).sum(-1).argmax(), (2, 2)) == (1, 0)
    assert heat(np.ones((2, 2))).shape == (2, 2, 3)


def test_heat_on_a_common_scale_gives_equal_values_equal_colours() -> None:
    first, second = (heat(np.array([[0.0, 1.0, top]]), low=0, high=2) for top in (2.0, 5.0))
    np.testing.assert_array_equal(first, second)
    assert (heat(np.array([[0.0, 1.0]]), low=0, high=2)[0, 1] == first[0, 1]).all()


def test_long_titles_of_curves_are_broken() -> None:
    rows = [{"step": step, "long": 1.0 + step} for step in range(5)]
    (panel,) = curve_panels(rows, {"long": "share of the change that falls outside what was erased"}, smoothing=1)
    assert "share of the change that falls outside<" in panel
    assert "what was erased<" in panel


def test_every_encoder_has_its_own_colour_in_the_plots() -> None:
    values = np.linspace(0, 1, 20)
    names = ("trained", "untrained", "imagenet")
    densities, curves = (
        density_plot(dict.fromkeys(names, (values, values))),
        error_curves(dict.fromkeys(names, values), {"same pixel": values}, 32),
    )
    for number in range(len(names)):
        assert f"var(--encoder-{number})" in densities
        assert f"var(--encoder-{number})" in curves
    assert "var(--encoder-3)" not in curves, "a baseline has no encoder's colour"
    assert "ImageNet" in densities
    assert "ImageNet" in curves


def rocs(labels: Sequence[str], names: Sequence[str] = ("trained", "untrained", "imagenet")) -> str:
    ends = np.array([0.0, 1.0])
    return roc_panels({label: dict.fromkeys(names, (ends, ends)) for label in labels})


def view_box(svg: str) -> list[float]:
    found = re.search(r'viewBox="([^"]*)"', svg)
    assert found is not None
    return [float(number) for number in found[1].split()]


def test_rocs_of_one_label_are_as_large_as_those_of_many_and_have_a_legend_that_fits() -> None:
    """The page stretches a picture to its width: a narrow one would come out large, its legend beside the page."""
    one, many = rocs(["effusion"]), rocs([f"label {number}" for number in range(14)])
    assert view_box(one)[2] == view_box(many)[2]
    assert one.count("untrained<") == many.count("untrained<") == 1
    names = [f"an_encoder_{number}" for number in range(9)]
    assert view_box(rocs(["effusion"], names))[3] > view_box(one)[3]


@pytest.mark.parametrize(("num_labels", "num_rows"), [(1, 1), (3, 1), (4, 1), (5, 2), (7, 2), (14, 4)])
def test_every_column_of_rocs_has_numbers_below_and_every_row_beside(num_labels: int, num_rows: int) -> None:
    svg = rocs([f"label {number}" for number in range(num_labels)])
    assert svg.count(">0.6</text>") == min(num_labels, 4) + num_rows


def test_a_roc_that_finds_all_first_rises_before_it_goes_to_the_right_in_the_colour_of_its_encoder() -> None:
    zero, one = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    svg = roc_panels({"effusion": {"best": (zero, one), "worst": (one, zero)}})
    paths = {
        number: re.search(rf'd="([^"]*)" [^>]*style="[^"]*stroke: var\(--encoder-{number}\)', svg) for number in (0, 1)
    }
    best, worst = (
        np.array(re.findall(r"[\d.]+", path[1]), float).reshape(-1, 2)[:2] for path in paths.values() if path
    )
    assert (best[1, 0], worst[1, 1]) == (best[0, 0], worst[0, 1])
    assert best[1, 1] < best[0, 1], "pixels are counted downwards"
    assert worst[1, 0] > worst[0, 0]


def test_long_labels_are_broken() -> None:
    svg = rocs(["a cardiomediastinum that is enlarged"])
    assert ">a cardiomediastinum<" in svg
    assert ">that is enlarged<" in svg


def test_a_label_with_dollars_is_no_formula() -> None:
    assert ">$^$ or $x$</text>" in rocs(["$^$ or $x$"])


def test_named_numbers_have_a_colour_each_and_others_are_grey() -> None:
    found = label_map(np.array([[-1, 0, 1, 2, 3, 4]]), 3)[0].astype(int)
    assert found[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in found[1:4].tolist()}) == 3
    assert (np.ptp(found[1:4], axis=1) > 0).all()
    assert (np.ptp(found[4:], axis=1) == 0).all()
    assert found[4, 0] != found[5, 0]


def test_every_encoders_points_have_a_panel_in_the_colours_given() -> None:
    points = np.random.default_rng(0).normal(size=(4, 2))
    svg = scatter_panels({"trained": points, "imagenet": points}, ["#112233", "#445566"] * 2)
    assert svg.count("fill: #112233") == svg.count("fill: #445566") == 2 * 2
    assert "ImageNet" in svg
    assert "<g id=" not in svg


def test_points_found_are_drawn_where_they_are() -> None:
    svg = found_tile(np.zeros((40, 40), np.uint8), np.array([[10.0, 20.0]]), np.array([[30.0, 5.0]]), "a label")
    assert "M20.0 10.0L5.0 30.0" in svg
    assert 'aria-label="a label"' in svg
