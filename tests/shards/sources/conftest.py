from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shards.sources.published import published_file


@pytest.fixture(scope="session")
def published(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """name → path of a dataset's real metadata file (tests/shards/sources/published.py)."""
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("published")
    return lambda name: published_file(name, cache)
