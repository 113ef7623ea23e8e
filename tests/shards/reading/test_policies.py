from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.core.errors import ConfigError, SourceError
from shards.reading.policies import BlankPolicy, UncertainPolicy, targets_of

Labels = list[int | None]
LABELS = st.lists(st.sampled_from([1, 0, -1, None]), max_size=40)
DRAWN = {"LSR-Ones": (0.55, 0.85), "LSR-Zeros": (0.0, 0.3)}
FIXED = {"U-Zeros": 0, "U-Ones": 1, "U-Ignore": None, "U-MultiClass": 2}


def test_the_policies_are_the_six_of_the_papers() -> None:
    assert set(get_args(UncertainPolicy)) == FIXED.keys() | DRAWN.keys()
    assert set(get_args(BlankPolicy)) == {"zeros", "ignore"}


@given(LABELS, st.sampled_from(sorted(FIXED)), st.sampled_from(["zeros", "ignore"]))
def test_every_entry_follows_the_definition(labels: Labels, uncertain: UncertainPolicy, blank: BlankPolicy) -> None:
    targets = targets_of(labels, uncertain, blank)
    becomes = {1: 1, 0: 0, -1: FIXED[uncertain], None: 0 if blank == "zeros" else None}
    expected = [becomes[label] for label in labels]
    assert targets.mask.tolist() == [value is not None for value in expected]
    assert targets.values.tolist() == [value or 0 for value in expected]


@given(LABELS, st.sampled_from(sorted(DRAWN)), st.integers(0, 2**32))
def test_smoothed_labels_stay_in_their_range_and_touch_nothing_else(
    labels: Labels, uncertain: UncertainPolicy, seed: int
) -> None:
    targets = targets_of(labels, uncertain, "zeros", np.random.default_rng(seed))
    low, high = DRAWN[uncertain]
    for label, value in zip(labels, targets.values.tolist(), strict=True):
        assert low <= value < high if label == -1 else value == (label or 0)
    assert targets.mask.all()


def test_smoothed_labels_are_uniform_and_not_truncated_to_whole_numbers() -> None:
    values = targets_of(np.full(20_000, -1), "LSR-Ones", "zeros", np.random.default_rng(0)).values
    quantiles = np.quantile(values, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [0.58, 0.70, 0.82], atol=0.01)


def test_an_entrys_draw_does_not_depend_on_other_labels() -> None:
    few = targets_of([1, None, -1, 0], "LSR-Zeros", "zeros", np.random.default_rng(3)).values
    all_ = targets_of([-1, -1, -1, -1], "LSR-Zeros", "zeros", np.random.default_rng(3)).values
    assert few[2] == all_[2] > 0
    again = np.random.default_rng(3)
    first, second = (targets_of([-1], "LSR-Zeros", "zeros", again).values for _ in range(2))
    assert first != second, "two draws of one generator differ"


def test_labels_of_any_shape_and_kind_keep_their_shape_and_are_not_changed() -> None:
    labels = np.array([[1.0, -1.0, np.nan], [0.0, 1.0, -1.0]])
    before = labels.copy()
    targets = targets_of(labels, "U-Ignore", "ignore")
    assert targets.values.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert targets.mask.tolist() == [[True, False, False], [True, True, False]]
    np.testing.assert_array_equal(labels, before)
    assert targets_of([[1, None]], "U-Ones", "zeros").values.shape == (1, 2)
    assert targets_of(1, "U-Ones", "zeros").values.shape == ()


@pytest.mark.parametrize("uncertain", sorted(DRAWN))
def test_a_policy_that_draws_needs_a_generator_even_where_nothing_is_uncertain(uncertain: UncertainPolicy) -> None:
    with pytest.raises(ConfigError, match=f"{uncertain} draws its targets; pass a generator"):
        targets_of([1, 0], uncertain, "zeros")


def test_unknown_policies_are_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no policy 'u-ones' for uncertain labels; there are U-Zeros, U-Ones"):
        targets_of([1], "u-ones", "zeros")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no policy '' for blank labels; there are zeros, ignore"):
        targets_of([1], "U-Ones", "")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [2, 0.7, -2, np.inf])
def test_labels_that_are_none_are_refused_and_so_a_policy_is_not_applied_twice(wrong: float) -> None:
    with pytest.raises(SourceError, match="1 of 3 labels are none of 1"):
        targets_of([1, wrong, None], "U-Zeros", "zeros")
