import pytest

from shards.core.errors import ConfigError
from tests.shards.phantom.settings import phantom_params


def test_a_range_that_descends_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"nodule_radius_mm.*15\.0 > 6\.0"):
        phantom_params(findings={"nodule_radius_mm": [15.0, 6.0]})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"size_px": 1025}, "size_px"), ({"num_patients": 0}, "num_patients"), ({"sede": 1}, "did you mean 'seed'")],
)
def test_impossible_numbers_and_misspelt_keys_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        phantom_params(**change)
