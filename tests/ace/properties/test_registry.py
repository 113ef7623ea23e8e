"""Every property has a name, a section and random numbers of its own."""

import numpy as np
import pytest

from ace.properties.base import STREAMS, Setting
from ace.properties.registry import PROPERTIES, PropertiesParams
from ace.protocol.features import DenseParams
from tests.ace.evaluation.drawn_project import EVALUATE
from tests.ace.properties.constructed import map_cohort


def generator(stream: str, seed: int = 0) -> np.random.Generator:
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    return Setting(cohort=map_cohort(2), index=None, dense=dense, seed=seed, max_patients=2, num_examples=1).generator(
        stream
    )


def test_names_and_figures_are_unique_and_told() -> None:
    names = [item.name for item in PROPERTIES]
    assert len(set(names)) == len(names)
    figures = [key for item in PROPERTIES for key in item.figures]
    assert len(set(figures)) == len(figures)
    assert set(PropertiesParams.model_fields) == set(names) == set(EVALUATE["properties"])
    for item in PROPERTIES:
        assert item.headline is None or item.headline in item.figures


def test_a_property_without_a_section_is_not_measured() -> None:
    params = PropertiesParams.from_params({"labels": {}, "colours": {}}, "evaluate.properties")
    assert [item.name for item, _ in params.chosen()] == ["colours", "labels"]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_first_streams_are_those_that_were_spawned_in_order(seed: int) -> None:
    for stream, spawned in zip(STREAMS, np.random.default_rng(seed).spawn(len(STREAMS)), strict=True):
        np.testing.assert_array_equal(generator(stream, seed).random(4), spawned.random(4))


def test_a_stream_depends_on_its_name_and_the_seed_alone() -> None:
    names = [*STREAMS, "retrieval", "symmetry", "another"]
    drawn = {name: tuple(generator(name).random(4)) for name in names}
    assert len(set(drawn.values())) == len(names)
    assert drawn["retrieval"] == tuple(generator("retrieval").random(4))
    assert drawn["retrieval"] != tuple(generator("retrieval", 1).random(4))
