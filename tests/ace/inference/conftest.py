from pathlib import Path

import pytest

from ace.inference.embedder import EmbeddingModel, load_model
from tests.ace.inference.models import write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "ace")


@pytest.fixture(scope="session")
def model(model_dir: Path) -> EmbeddingModel:
    return load_model(model_dir, which="teacher", device="cpu", normalisation=None)
