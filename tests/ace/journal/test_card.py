"""The model card says how the model came about, from the values of config.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ace.journal.card import model_card
from ace.models.folder import FORMAT_VERSION
from ace.models.model_config import TrainedConfig
from tests.ace.pretrain.conftest import tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import finish, start_run
from tests.support.datasets import forget_patients

SHA256 = "ab" * 32


def config_of(**changes: Any) -> dict[str, Any]:
    """As a run of two processes would have written it."""
    return {
        "format_version": FORMAT_VERSION,
        "params": {
            "pretrain": tiny_params(**changes).model_dump(mode="json", by_alias=True),
            "grid": tiny_grid().spec.to_json(),
            "batches": {name: {"mix": mix.model_dump(mode="json")} for name, mix in tiny_mix().items()},
        },
        "shards": [],
        "start_from": {"teacher_backbone.safetensors": SHA256},
        "steps": 18,
        "num_processes": 2,
        "device": "cuda",
        "versions": {"torch": "2.6"},
    }


def card_of(config: dict[str, Any]) -> str:
    return model_card(TrainedConfig.model_validate(config))


def backbone_with(weights: dict[str, Any]) -> dict[str, Any]:
    return {"backbone": {**tiny_params().backbone.model_dump(mode="json"), "weights": weights}}


def row(card: str, name: str) -> str:
    """The second cell of one row of the table."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return line.split("|")[2].strip()


def test_objective_and_conditions_of_the_training_are_named() -> None:
    card = card_of(config_of(objective="dino", precision="bf16"))
    assert row(card, "objective") == "`dino`"
    assert row(card, "training") == "6 epochs, 18 steps of 8 images"
    assert row(card, "computed") == "in bf16, by 2 process(es) on cuda"
    assert row(card, "hardware") == "not recorded"
    machine = {"processor": "a fast one", "cores": 8, "memory_gb": 33.6, "accelerators": ["H200", "H200"]}
    card = card_of({**config_of(), "hardware": machine})
    assert row(card, "hardware") == "2 × H200; a fast one, 8 cores, 33.6 GB of memory"


def test_the_name_of_a_processor_stays_in_its_cell() -> None:
    machine = {"processor": "a|b  <i>&\nc", "cores": 8, "memory_gb": 33.6, "accelerators": []}
    card = card_of({**config_of(), "hardware": machine})
    assert "\n| hardware | a\\|b &lt;i&gt;&amp; c, 8 cores, 33.6 GB of memory |\n" in card


def augment_with(**erase: Any) -> dict[str, Any]:
    augment = tiny_params().augment.model_dump(mode="json")
    return {"augment": {**augment, "erase": {**augment["erase"], **erase}}}


def test_weights_of_all_terms_are_named() -> None:
    weights = {"global": 0.2, "decomposition": 0.5, "composition": 0.25, "removal": 0.1}
    expected = "global 0.2, decomposition 0.5, composition 0.25, removal 0.1"
    assert row(card_of(config_of(loss_weights=weights)), "loss weights") == expected


@pytest.mark.parametrize(
    ("erase", "expected"),
    [
        (
            {"probability": 0.35, "fills": {"black": 2.0, "mean": 2.0, "grey": 2.0, "noise": 2.0, "tissue": 0.0}},
            "a square in 35 % of the crops, filled with black, the crop's mean level, a random level or noise, each "
            "equally often",
        ),
        (
            {"probability": 0.7, "fills": {"black": 1.0, "mean": 0.0, "grey": 0.0, "noise": 0.0, "tissue": 3.0}},
            "a square in 70 % of the crops, filled with black (25 %) or another image's tissue (75 %)",
        ),
        (
            {
                "probability": 0.5,
                "fills": {"black": 3.0, "mean": 0.0, "grey": 0.0, "noise": 1.0, "tissue": 0.0},
                "max_rectangles": 2,
            },
            "1 to 2 squares in 50 % of the crops, filled with black (75 %) or noise (25 %)",
        ),
        (
            {
                "probability": 1.0,
                "fills": {"black": 0.0, "mean": 0.0, "grey": 1.0, "noise": 0.0, "tissue": 0.0},
                "max_aspect": 2.0,
            },
            "a rectangle in 100 % of the crops, filled with a random level",
        ),
    ],
)
def test_what_was_erased_and_what_filled_it_are_named(erase: dict[str, Any], expected: str) -> None:
    assert row(card_of(config_of(**augment_with(**erase))), "erased") == expected


def test_the_card_speaks_of_the_phantom_only_where_it_was_trained_on() -> None:
    clinic = {
        "batch": "clinic-b000",
        "num_images": 5,
        "num_patients": 3,
        "weight": 1.0,
        "fingerprint": "ab" * 16,
        "shards": [],
    }
    unknown = card_of({**config_of(), "shards": [clinic]})
    assert "if they are the built-in phantom" in unknown
    clinic["kind"] = "folder"
    card = card_of({**config_of(), "shards": [clinic]})
    assert "bounded by the images above.\n" in card
    for absent in ("phantom", "warps"):
        assert absent not in card
    phantom = {**clinic, "batch": "phantom-b000", "kind": "phantom"}
    card = card_of({**config_of(), "shards": [clinic, phantom]})
    assert "Those of phantom-b000, the built-in phantom, are one person's anatomy" in card


def test_nothing_erased_is_told_as_that() -> None:
    weights = {"global": 0.1, "decomposition": 0.5, "composition": 0.5, "removal": 0.0}
    config = config_of(**augment_with(probability=0.0), loss_weights=weights)
    assert row(card_of(config), "erased") == "nothing"


def test_a_model_from_before_fills_and_the_removal_term_has_a_card() -> None:
    config = config_of()
    pretrain = config["params"]["pretrain"]
    del pretrain["loss_weights"]["removal"]
    pretrain["augment"]["erase"] = {"probability": 0.25, "min_side": 0.3, "max_side": 0.8}
    card = card_of(config)
    assert row(card, "erased") == "a square in 25 % of the crops, filled with black"
    assert row(card, "loss weights").endswith("removal 0")


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
        (
            backbone_with({"kind": "package", "package": "some-weights", "sha256": SHA256, "min_share": 0.9}),
            ["the Python package `some-weights`", SHA256, "start.txt"],
        ),
    ],
    ids=["random", "model", "timm", "file", "package"],
)
def test_what_the_training_started_from_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    found = row(card_of(config_of(**changes)), "started from")
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


def test_patients_that_nobody_knows_are_not_counted(noise_shards: Path, tmp_path: Path) -> None:
    known = {"batch": "b", "num_images": 5, "num_patients": 3, "weight": 1.0, "fingerprint": "ab" * 16, "shards": []}
    unknown = {**known, "batch": "a", "patient_grouping": "image"}
    card = card_of({**config_of(), "shards": [unknown, known]})
    assert "| a | 5 | unknown | 1 |" in card
    assert "| b | 5 | 3 | 1 |" in card
    assert "The patients of a are unknown: these images were split one by one" in card
    assert "unknown" not in card_of({**config_of(), "shards": [known]})

    shutil.copytree(noise_shards, tmp_path / "shards")
    (shard_set,) = (tmp_path / "shards").iterdir()
    forget_patients(shard_set)
    (tmp_path / "run").mkdir()
    (said,) = finish(start_run(tmp_path / "shards", tmp_path / "run", epochs=2))
    assert f"warning: {shard_set.name}: patients are unknown (patient_grouping: image)" in said
    assert f"The patients of {shard_set.name} are unknown" in (tmp_path / "run/model/README.md").read_text()
