"""The folder of a finished model."""

import json
from pathlib import Path

import torch

from ace.models.model_config import TrainedConfig
from ace.pretrain.model_folder import save_model
from ace.pretrain.pretrain import build_state
from tests.ace.journal.test_card import config_of
from tests.ace.pretrain.conftest import tiny_grid, tiny_params


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    state = build_state(tiny_params(), tiny_grid(), torch.device("cpu"))
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
        save_model(folder, state.student, state.teacher, TrainedConfig.model_validate(config_of()))
    for path in folders[0].iterdir():
        assert len({(folder / path.name).read_bytes() for folder in folders}) == 1, path.name


def test_config_json_holds_what_was_given_with_sorted_keys(tmp_path: Path) -> None:
    state = build_state(tiny_params(), tiny_grid(), torch.device("cpu"))
    save_model(tmp_path, state.student, state.teacher, TrainedConfig.model_validate(config_of()))
    expected = json.dumps(config_of(), indent=2, sort_keys=True) + "\n"
    assert (tmp_path / "config.json").read_text() == expected
