"""The labelled set and two models of it, built once."""

from pathlib import Path

import pytest

from ace.downstream import finetune as stage
from shards.reading.reader import ShardIndex
from tests.ace.downstream.labelled import blind, build, encoder, sees
from tests.ace.evaluation.drawn_project import write_model


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("ACE_ID_KEY_FILE", raising=False)
    return tmp_path / "scratch"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `shards` and `models`."""
    root = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        patch.delenv("ACE_ID_KEY_FILE", raising=False)
        build(root)
    for seed, name in enumerate(("trained", "seeing", "blind")):
        write_model(root / "models" / name, seed=seed)
    return root


@pytest.fixture(scope="session")
def index(project: Path) -> ShardIndex:
    return ShardIndex.open(project / "shards" / "phantom-b000")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the models `seeing` and `blind` stand encoders whose answers are known."""
    known = {"seeing": sees, "blind": blind}

    def opened(params: object, *arguments: object) -> object:
        return encoder(known[Path(params.model).name])  # type: ignore[attr-defined]

    monkeypatch.setattr(stage, "open_encoder", opened)
