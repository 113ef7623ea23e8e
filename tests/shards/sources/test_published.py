from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shards.sources.published import SHA256


@pytest.mark.parametrize("name", SHA256)
def test_the_wheel_carries_the_file_whose_counts_are_pinned(name: str, published: Callable[[str], Path]) -> None:
    assert published(name).stat().st_size > 0
