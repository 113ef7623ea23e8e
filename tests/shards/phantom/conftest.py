import pytest
from jaxtyping import install_import_hook

install_import_hook(["shards.phantom.projection", "shards.phantom.film"], "beartype.beartype")

from shards.phantom.anatomy import Anatomy, load_anatomy  # noqa: E402 (the hook comes first)


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    return load_anatomy()
