"""What the commands are given: a service with two accepted models, and the noise shards of the tests of training."""

import pytest

from tests.ace.commands.given import main
from tests.ace.operations.conftest import service
from tests.ace.operations.service import Service
from tests.ace.pretrain.conftest import noise_shards

__all__ = ["noise_shards", "service"]


@pytest.fixture
def accepted(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Service:
    """Two versions, of which the second is accepted, and the service's clone as the working directory."""
    monkeypatch.chdir(service.root)
    monkeypatch.setenv("ACE_MODELS", str(service.models))
    for text in ("one", "two"):
        service.train(text)
        assert main(["models", "promote"]) == 0
    capsys.readouterr()
    return service
