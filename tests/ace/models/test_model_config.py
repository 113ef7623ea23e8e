"""config.json of a model is read into one frozen type, and written as it was."""

import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ace.models.folder import CONFIG
from ace.models.model_config import Hardware, ImportedConfig, TrainedConfig, read_config
from ace.zoo.shipped import ZOO, shipped_names
from shards.core.errors import ConfigError
from tests.ace.journal.test_card import config_of

FORMATS = Path(__file__).parents[2] / "behaviour" / "formats"
FOLDERS = [FORMATS / "model-3", FORMATS / "model-4", *(ZOO / name for name in shipped_names())]
SOURCE = {"file": "w.pth", "sha256": "ab" * 32, "nest": "", "adapted": [], "derived": ["mask"], "heads": []}


HARDWARE = {"processor": "a fast one", "cores": 8, "memory_gb": 33.6, "accelerators": ["H200", "H200"]}


def imported_config() -> dict[str, Any]:
    params = config_of()["params"]
    return {
        "format_version": 4,
        "origin": "imported",
        "source": SOURCE,
        "params": {**params, "pretrain": {"backbone": params["pretrain"]["backbone"]}},
        "versions": {},
    }


def text_of(values: Any) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_other_releases_wrote_is_written_again_as_it_was(folder: Path) -> None:
    """Equal as text, which tells 1 from 1.0 and a missing key from a null."""
    assert read_config(folder).to_text() == text_of(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (config_of(), TrainedConfig),
        ({**config_of(), "hardware": HARDWARE}, TrainedConfig),
        (imported_config(), ImportedConfig),
    ],
)
def test_a_trained_and_an_imported_model_have_a_type_each(values: dict[str, Any], kind: type, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(values))
    config = read_config(tmp_path)
    assert type(config) is kind
    assert config.to_text() == text_of(values)
    with pytest.raises(ValidationError, match="frozen"):
        config.format_version = 5


def test_what_older_models_lack_is_what_they_were_trained_with(tmp_path: Path) -> None:
    values = config_of()
    pretrain = values["params"]["pretrain"]
    for key in ("whitening", "precision", "objective", "start_from"):
        pretrain.pop(key, None)
    del values["start_from"], pretrain["loss_weights"]["removal"]
    pretrain["augment"]["erase"] = {"probability": 0.25}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    config = read_config(tmp_path)
    assert isinstance(config, TrainedConfig)
    found = config.params.pretrain
    assert (found.whitening, found.precision, found.objective, found.start_from) == (None, "fp32", "ace", None)
    assert (found.loss_weights.removal, found.augment.erase.fills) == (0.0, {"black": 1.0})
    assert (config.best, config.start_from, config.published, config.hardware) == (None, {}, None, None)
    assert config.to_text() == text_of(values)


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (lambda config: operator.delitem(config["params"]["pretrain"], "backbone"), "params.pretrain.backbone is missing"),
        (lambda config: config["params"]["pretrain"]["backbone"].update(in_channels=2), "backbone.in_channels is 2"),
        (lambda config: config["params"]["grid"].update(t=3), "params.grid is .* t is 3"),
        (lambda config: config.update(steps="many"), "steps is 'many'"),
        (lambda config: config.update(hardware={**HARDWARE, "cores": "many"}), "hardware.cores is 'many'"),
        (lambda config: config["params"]["batches"]["noise-b000"]["mix"].update(std=0), "mix.std.0 is 0"),
        (lambda config: config.update(origin="imported"), "source is missing"),
    ],
)
def test_a_damaged_file_is_refused_by_the_field_that_is_wrong(
    damage: Callable[[dict[str, Any]], None], field: str, tmp_path: Path
) -> None:
    values = config_of()
    damage(values)
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / CONFIG))}: damaged \(.*{field}.*dvc checkout"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "2 × H200; a fast one, 8 cores, 33.6 GB of memory"),
        ({"accelerators": []}, "a fast one, 8 cores, 33.6 GB of memory"),
        ({"accelerators": ["A", "B"], "cores": None}, "1 × A; 1 × B; a fast one, number of cores unknown, 33.6 GB of "),
    ],
)
def test_a_machine_is_told_in_words(changes: dict[str, Any], text: str) -> None:
    assert Hardware.model_validate({**HARDWARE, **changes}).text.startswith(text)
