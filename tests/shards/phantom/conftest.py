import pytest
from jaxtyping import install_import_hook

install_import_hook(["shards.phantom.projection", "shards.phantom.film", "shards.phantom.radiograph"], "beartype.beartype")

from shards.phantom.anatomy import Anatomy, load_anatomy


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    return load_anatomy()
