"""The model card says how the model came about, from the values of config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from ace.training.card import model_card
from tests.ace.training.conftest import tiny_params
from tests.ace.training.runs import finish, start_run

SHA256 = "ab" * 32


def config_of(**changes: Any) -> dict[str, Any]:
    """As a run of two processes would have written it."""
    return {
        "params": {
            "pretrain": tiny_params(**changes).model_dump(mode="json", by_alias=True),
            "grid": {"n": 8, "cell_px": 8, "t": 2},
        },
        "shards": [],
        "start_from": {"teacher_backbone.safetensors": SHA256},
        "steps": 18,
        "num_processes": 2,
        "device": "cuda",
        "versions": {"torch": "2.6"},
    }


def backbone_with(weights: dict[str, Any]) -> dict[str, Any]:
    return {"backbone": {**tiny_params().backbone.model_dump(mode="json"), "weights": weights}}


def row(card: str, name: str) -> str:
    """The second cell of one row of the table."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return line.split("|")[2].strip()


def test_objective_and_conditions_of_the_training_are_named() -> None:
    card = model_card(config_of(objective="dino", precision="bf16"))
    assert row(card, "objective") == "`dino`"
    assert row(card, "training") == "6 epochs, 18 steps of 8 images"
    assert row(card, "computed") == "in bf16, by 2 process(es) on cuda"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["random weights"]),
        ({"start_from": "models/ace-2026"}, ["models/ace-2026", SHA256]),
        (
            backbone_with({"kind": "timm", "tag": "ms_in22k", "sha256": None, "min_share": 0.9}),
            ["timm's `ms_in22k`", "no sha256 asked for", "start.txt"],
        ),
        (
            backbone_with({"kind": "file", "path": "weights/b.pth", "sha256": SHA256, "min_share": 0.9}),
            ["`weights/b.pth`", SHA256, "start.txt"],
        ),
    ],
    ids=["random", "model", "timm", "file"],
)
def test_what_the_training_started_from_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    found = row(model_card(config_of(**changes)), "started from")
    assert [part for part in expected if part not in found] == []


def test_a_run_that_starts_from_a_model_names_the_teacher_it_took(noise_shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, changes in ((first, {}), (second, {"start_from": str(first / "model")})):
        folder.mkdir()
        finish(start_run(noise_shards, folder, epochs=2, **changes))
    sha256 = json.loads((second / "model/config.json").read_text())["start_from"]["teacher_backbone.safetensors"]
    assert row((first / "model/README.md").read_text(), "started from") == "random weights"
    found = row((second / "model/README.md").read_text(), "started from")
    assert str(first / "model") in found
    assert sha256 in found
