from collections.abc import Callable, Mapping

import numpy as np
import pytest

from shards.params import GridParams
from shards.read import ShardIndex
from tests.ace.data.painted import build_shards_of


@pytest.fixture(scope="session")
def build_painted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ShardIndex]:
    """`build_shards_of` in a fresh folder at each call."""

    def build(images: Mapping[str, np.ndarray], grid: GridParams, *, num_bank_pairs: int = 4) -> ShardIndex:
        return build_shards_of(images, grid, tmp_path_factory.mktemp("painted"), num_bank_pairs=num_bank_pairs)

    return build
