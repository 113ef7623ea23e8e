from collections.abc import Callable, Mapping

import numpy as np
import pytest

from shards.core.params import GridParams
from shards.reading.reader import ShardIndex
from tests.ace.data.painted import build_shards_of


@pytest.fixture(scope="session")
def build_painted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ShardIndex]:
    """`build_shards_of` in a fresh folder at each call."""

    def build(
        images: Mapping[str, np.ndarray], grid: GridParams, *, num_bank_pairs: int = 4, image_format: str = "png"
    ) -> ShardIndex:
        root = tmp_path_factory.mktemp("painted")
        return build_shards_of(images, grid, root, num_bank_pairs=num_bank_pairs, image_format=image_format)

    return build
