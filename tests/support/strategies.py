"""Grids, pairs and images for properties."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.core.grid import CropPair, GridSpec, Scale, draw_crop_pair

SCALES = ((1, 1), (1, 2), (2, 1), (2, 2))


@st.composite
def specs(draw: st.DrawFn, max_t: int = 8) -> GridSpec:
    t = 2 * draw(st.integers(1, max_t // 2))
    n = draw(st.integers(2 * t, 2 * t + 5))
    pairs = draw(st.lists(st.sampled_from(SCALES), min_size=1, max_size=4, unique=True))
    scales = tuple(Scale(k, l, draw(st.floats(0.1, 3))) for k, l in pairs)
    return GridSpec(
        n=n,
        cell_px=draw(st.integers(1, 20)),
        t=t,
        scales=scales,
        min_overlap=draw(st.floats(0, 1)),
        min_jitter_area=draw(st.floats(0.3, 1)),
    )


@st.composite
def specs_and_pairs(draw: st.DrawFn) -> tuple[GridSpec, CropPair]:
    spec = draw(specs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return spec, draw_crop_pair(spec, draw(st.sampled_from(spec.scales)), rng)


def grey_images(max_side: int = 40) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint8, st.tuples(st.integers(1, max_side), st.integers(1, max_side)))


def colour_images(max_side: int = 24) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint8, st.tuples(st.integers(1, max_side), st.integers(1, max_side), st.just(3)))
