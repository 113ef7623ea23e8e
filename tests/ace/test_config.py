"""Mistakes in params.yaml: one clear message each, before any work; and named configurations."""

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ace.config import Config, check_config, migrate, naming, resolve, use
from ace.properties.retrieval import RetrievalParams
from shards.core.config import read_params
from shards.core.errors import ConfigError, ContaminationError, StoreError
from shards.core.identity import PUBLIC_KEY, split_of
from shards.core.params import BatchParams, RegisteredSourceParams
from shards.delivery.batches import read_batch, read_batches, settings_of
from shards.delivery.project import Project
from shards.phantom.study import patient_id
from tests.support.checkout import copy_project

ROOT = Path(__file__).parents[2]


@cache
def demo() -> dict[str, Any]:
    return read_params(ROOT / "configs/demo.yaml")


def changed(**overrides: Any) -> dict[str, Any]:
    """The demo values with dotted keys (double underscore for the dot) replaced."""
    values = deepcopy(demo())
    for path, value in overrides.items():
        *parents, key = path.split("__")
        section = values
        for parent in parents:
            section = section[parent]
        section[key] = value
    return values


def batches_of(values: dict[str, Any], **sources: dict[str, Any]) -> dict[str, BatchParams]:
    """The files of batches: all phantoms but those that are given, with the grid and settings of the values."""
    settings = {"grid": values["grid"], "shard": values["shard"], "measured": {"mean": 0.5, "std": 0.2}}
    phantom = {"kind": "phantom", "dep": "data/phantom"}
    return {
        name: BatchParams.from_params({"source": sources.get(name, phantom), **settings}, f"batches/{name}.yaml")
        for name in values["batches"]
    }


def check(values: dict[str, Any], **sources: dict[str, Any]) -> None:
    check_config(Config.from_params(values, "params.yaml"), batches_of(values, **sources))


def error_of(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(values)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["use smoke", pytest.param("migrate", marks=pytest.mark.slow)])
def test_a_command_that_changes_the_project_waits_for_another_one(command: str, tmp_path: Path) -> None:
    copy_project(tmp_path)
    params = tmp_path / "params.yaml"
    before = params.read_text(encoding="utf-8")
    # What the other command writes while it holds the lock must not be lost.
    arguments = [sys.executable, "-m", "ace", "config", *command.split(), "--params", str(params)]
    with Project(params).editing():
        waiting = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"waiting for another command that changes {params} …\n"
        params.write_text(before + "# of the other command\n", encoding="utf-8")
    assert waiting.wait(timeout=120) == 0
    waiting.stderr.close()
    assert params.read_text(encoding="utf-8").endswith("# of the other command\n")


def test_the_demo_configuration_passes_every_check() -> None:
    check(changed())


def test_the_demo_has_at_least_64_test_patients() -> None:
    config = Config.from_params(changed(), "params.yaml")
    patients = [patient_id(number) for number in range(config.phantom.num_patients)]
    assert [split_of(PUBLIC_KEY.position(patient), config.shard.splits) for patient in patients].count("test") >= 64


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"epoch": 3}, "variants.odd: epoch: unknown key"),
        ({"warmup_epochs": 1000}, "variants.odd: warmup_epochs is 1000"),
        ({"batch_size": 7, "num_micro_batches": 2}, "variants.odd.batch_size 7 does not divide"),
        ({"backbone": {"name": "convnext_ato", "model_args": {}}}, "variants.odd: backbone convnext_ato"),
        (
            {"backbone": {"weights": {"kind": "timm", "tag": "x", "sha256": "0" * 64, "min_share": 1}}},
            "variants.odd: weights.tag is 'x'",
        ),
        ({"start_from": "models/none"}, "variants.odd.start_from models/none: no "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_variant_is_told_of_the_variant(patch: dict[str, Any], said: str) -> None:
    text = error_of(changed(variants={"odd": patch}))
    assert said in text
    assert "pretrain." not in text


def test_an_objective_that_the_grid_cannot_serve_is_told_of_the_variant() -> None:
    one_to_one = [{"k": 1, "l": 1, "weight": 1.0}]
    text = error_of(changed(grid__scales=one_to_one, variants={"odd": {"objective": "ace_v2"}}))
    assert "variants.odd: objective ace_v2 needs a scale other than 1x1" in text


def test_an_error_of_another_kind_keeps_its_kind_and_gets_the_name_of_the_variant() -> None:
    said = r"^set variants\.odd\.on_nonfinite as `python -m ace pretrain` has it$"
    with pytest.raises(StoreError, match=said), naming("variants.odd"):
        raise StoreError("set pretrain.on_nonfinite as `python -m ace pretrain` has it")


def test_a_batch_name_that_is_no_path_is_refused() -> None:
    values = changed()
    values["batches"]["phantom b"] = values["batches"]["phantom-b000"]
    assert "batch name 'phantom b': expected a letter" in error_of(values)


def test_a_misspelt_key_names_its_place_and_the_right_one() -> None:
    message = error_of(changed(pretrain__base_lrr=1e-3))
    assert message == "params.yaml: pretrain.base_lrr: unknown key; did you mean 'base_lr'?"


def test_a_misspelt_key_of_a_source_is_compared_with_its_own_kind() -> None:
    with pytest.raises(ConfigError, match=r"sit: unknown key; did you mean 'site'\?"):
        batches_of(changed(), **{"phantom-b000": {"kind": "folder", "sit": "x"}})


def test_a_missing_key_is_named() -> None:
    values = changed()
    del values["grid"]["min_overlap"]
    assert "params.yaml: grid.min_overlap: missing" in error_of(values)


def test_every_mistake_is_listed_at_once() -> None:
    message = error_of(changed(pretrain__batch_size=0, evaluate__seed=-1))
    assert "pretrain.batch_size" in message
    assert "evaluate.seed" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"grid__t": 7}, "t is 7; expected an even number"),
        ({"grid__n": 12}, "coarse crop larger than the canvas: k·t = 2·8 = 16 cells, n = 12"),
        ({"grid__cell_px": 8}, "token grid is 4×4, expected t×t = 8×8"),
        ({"pretrain__backbone__name": "vit_tiny_patch16_22"}, "did you mean"),
        ({"pretrain__backbone__model_args__depth": None}, "gives no value for ['depth']"),
        ({"evaluate__batch": "elsewhere"}, "evaluate.batch is 'elsewhere'; expected one of ['phantom-b000']"),
        ({"phantom__num_patients": 40}, "test patients and evaluate.properties.decomposition needs 32"),
        ({"mix__phantom-b000__weight": 0}, "every batch in mix has weight 0"),
        ({"pretrain__warmup_epochs": 1000}, "warm-up must be shorter"),
        ({"pretrain__crops": "bank", "shard__num_bank_pairs": 0}, "'bank' and shard.num_bank_pairs is 0"),
        ({"pretrain__batch_size": 15}, "parts of 15 image(s) for 1 process(es) × num_micro_batches 1, and"),
        ({"pretrain__num_micro_batches": 3}, "does not divide into 1 process(es) × num_micro_batches 3"),
        ({"pretrain__batch_size": 5000}, "training images and pretrain.batch_size is 5000"),
        ({"shard__splits": {"train": 0.0, "val": 0.0, "test": 1.0}}, "gives 0 training images"),
        ({"pretrain__augment__blur__min_sigma_px": 9.0}, "min_sigma_px 9.0 is above max_sigma_px 1.6"),
        ({"evaluate__dense__window_step_cells": 9}, "window_step_cells 9 exceeds t 8"),
        (
            {"evaluate__properties__composition__min_side": 0.95, "evaluate__properties__composition__max_side": 1.0},
            "regions of min_side 0.95 overlap by an IoU of at least 0.81",
        ),
        ({"shard__splits__test": 0.5}, "must sum to 1"),
        (
            {"mix__phantom-b000__mean": [0.6, 0.3, 0.1]},
            "mix.phantom-b000: found a list of 3 as mean, expected one number: the network takes 1 channel(s) "
            "(pretrain.backbone.in_channels); set in_channels to 3, or give mean and std of the images in grey",
        ),
        ({"mix__phantom-b000__mean": 2.0}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_explained_with_both_numbers(overrides: dict[str, Any], expected: str) -> None:
    assert expected in error_of(changed(**overrides))


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: 1e-4\nb: 8.0e-3\n")
    assert read_params(tmp_path / "params.yaml") == {"a": 1e-4, "b": 8e-3}


def test_use_gives_the_same_file_from_any_other_and_keeps_comments_and_batches(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    document = YAML().load(params.read_text())
    document["batches"]["mine-b000"] = document["batches"]["phantom-b000"]
    shutil.copytree(ROOT / "batches", tmp_path / "batches")
    own = (tmp_path / "batches/phantom-b000.yaml").read_text().replace("num_bank_pairs: 16", "num_bank_pairs: 4")
    (tmp_path / "batches/mine-b000.yaml").write_text(own)
    YAML().dump(document, params)
    assert use("smoke", params, ROOT / "configs")
    smoke = params.read_text()
    assert "# cells per canvas side" in smoke
    assert "mine-b000" in smoke
    assert use("demo", params, ROOT / "configs")
    assert use("smoke", params, ROOT / "configs")
    assert params.read_text() == smoke
    assert use("smoke", params, ROOT / "configs") == []
    batch = read_batch("phantom-b000", tmp_path)
    assert (batch.grid, batch.shard) == settings_of(read_params(params), params), "it had the settings of params.yaml"
    assert (tmp_path / "batches/mine-b000.yaml").read_text() == own, "it has its own"


def test_use_leaves_the_measured_batch_of_a_project_without_the_phantom(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params.write_text(text.replace("phantom-b000", "real-b000"), encoding="utf-8")
    assert use("cxr_small", params, ROOT / "configs")
    assert read_params(params)["evaluate"]["batch"] == "real-b000"
    assert use("cxr_small", params, ROOT / "configs") == []
    shutil.copy(ROOT / "params.yaml", params)
    use("cxr_small", params, ROOT / "configs")
    assert read_params(params)["evaluate"]["batch"] == "phantom-b000"


def write_configs(folder: Path, **overlays: str) -> Path:
    folder.mkdir()
    shutil.copy(ROOT / "configs/demo.yaml", folder)
    for name, text in overlays.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_configuration_with_a_base_is_laid_over_it(tmp_path: Path) -> None:
    configs = write_configs(
        tmp_path / "configs",
        small="pretrain: {epochs: 5, batch_size: 4}\nreport: {title: small}\n",
        smaller="base: small\npretrain: {epochs: 3}\n",
    )
    values = resolve("smaller", configs)
    assert (values["pretrain"]["epochs"], values["pretrain"]["batch_size"]) == (3, 4)
    assert values["report"]["title"] == "small"
    assert values["pretrain"]["seed"] == resolve("demo", configs)["pretrain"]["seed"]
    assert "base" not in values


@pytest.mark.parametrize(
    ("base", "reason"), [("b", "a → b → a: a configuration cannot be its own base"), ("c", "has no configuration 'c'")]
)
def test_a_base_that_leads_nowhere_is_refused(base: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve("a", write_configs(tmp_path / "configs", a=f"base: {base}\n", b="base: a\n"))


def test_checks_of_a_configuration_replace_those_of_its_base(tmp_path: Path) -> None:
    checks = "evaluate: {checks: {gain.compositionality.low: {min: 0.5}}}\n"
    values = resolve("mine", write_configs(tmp_path / "configs", mine=checks))
    assert values["evaluate"]["checks"] == {"gain.compositionality.low": {"min": 0.5}}


def test_an_unknown_configuration_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected one of .*\bdemo, .*nano, smoke"):
        use("enormous", tmp_path / "params.yaml", ROOT / "configs")


def test_a_command_prints_the_mistake_without_a_traceback_and_exits_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ace", "config", "check", "--set", "pretrain.epoch=3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pretrain.epoch: unknown key; did you mean 'epochs'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_and_evaluation_on_the_same_images_need_an_explicit_yes() -> None:
    values = changed(evaluate__batch="rsna-b000")
    sources: dict[str, dict[str, Any]] = {}
    source = {
        "dep_sha256": 64 * "0",
        "channels": 1,
        "id_key_fingerprint": "idkey-0123456789abcdef",
    }
    for name, kind, shared in (("nih", "nih-chestxray14", []), ("rsna", "rsna-pneumonia", ["nih-chestxray14"])):
        dep = f"data/manifests/{name}-b000.jsonl"
        sources[f"{name}-b000"] = {"kind": kind, "dep": dep, "shares_images_with": shared, **source}
        values["batches"][f"{name}-b000"] = dep
        values["mix"][f"{name}-b000"] = {"weight": 1.0, "mean": 0.5, "std": 0.2}
    with pytest.raises(ContaminationError, match=r"rsna-b000 \(rsna-pneumonia\) and training hold .* nih-b000"):
        check(values, **sources)
    values["evaluate"]["accept_shared_images"] = True
    check(values, **sources)
    values["evaluate"]["accept_shared_images"] = False
    values["mix"]["nih-b000"]["weight"] = 0.0
    check(values, **sources)
    del values["mix"]["nih-b000"]
    check(values, **sources)


def test_shards_of_another_grid_are_refused_with_both_numbers_and_the_remedy() -> None:
    values, other = changed(), changed(grid__n=20)
    with pytest.raises(ConfigError) as caught:
        check_config(Config.from_params(values, "params.yaml"), batches_of(other))
    assert str(caught.value) == (
        "batches/phantom-b000.yaml has grid.n 20, params.yaml has 18; "
        "`python -m shards settings phantom-b000` gives the batch those of params.yaml"
    )


def test_a_batch_of_the_mix_that_is_no_batch_is_named() -> None:
    assert "mix has ['clinic-b000', 'phantom-b000']; batches has ['phantom-b000']" in error_of(
        changed(**{"mix__clinic-b000": {"weight": 1.0, "mean": 0.5, "std": 0.2}})
    )


FORMER = """# of an earlier version
grid: GRID
shard: SHARD
# deliveries
batches:
  phantom-b000:
    source: {kind: phantom, dep: data/phantom}
    mix: {weight: 1.0, mean: 0.482, std: 0.269}
  clinic-b000:
    source:
      kind: folder
      dep: data/manifests/clinic-b000.jsonl
      dep_sha256: "0000000000000000000000000000000000000000000000000000000000000000"
      root: /archive/x rays
      channels: 1
      shares_images_with: []
      id_key_fingerprint: idkey-0123456789abcdef
    mix: {weight: 0.5, mean: 0.4, std: 0.2}
pretrain: {seed: 0}   # kept
"""


def test_a_project_of_an_earlier_version_is_brought_to_this_one(tmp_path: Path) -> None:
    demo, params = read_params(ROOT / "configs/demo.yaml"), tmp_path / "params.yaml"
    text = FORMER.replace("GRID", json.dumps(demo["grid"])).replace("SHARD", json.dumps(demo["shard"]))
    params.write_text(text, encoding="utf-8")
    assert len(migrate(params)) == 4
    values = read_params(params)
    assert values["batches"] == {"phantom-b000": "data/phantom", "clinic-b000": "data/manifests/clinic-b000.jsonl"}
    assert {name: item["weight"] for name, item in values["mix"].items()} == {"phantom-b000": 1.0, "clinic-b000": 0.5}
    assert "# kept" in params.read_text()
    assert "# deliveries" in params.read_text()
    batches = read_batches(params, values)
    assert (batches["clinic-b000"].grid, batches["clinic-b000"].shard) == settings_of(values, params)
    source = batches["clinic-b000"].source
    assert isinstance(source, RegisteredSourceParams)
    assert (source.root, source.kind) == ("/archive/x rays", "folder")
    assert batches["clinic-b000"].measured.mean == (0.4,)
    once = params.read_bytes()
    assert migrate(params) == []
    assert params.read_bytes() == once


def test_a_project_without_a_batch_of_the_phantom_needs_no_section_of_it() -> None:
    values = changed(batches={"nih-b000": "data/manifests/nih-b000.jsonl"}, evaluate__batch="nih-b000")
    values["mix"] = {"nih-b000": {"weight": 1.0, "mean": 0.5, "std": 0.2}}
    source = {"kind": "nih-chestxray14", "dep": "data/manifests/nih-b000.jsonl", "dep_sha256": 64 * "0"}
    source |= {"channels": 1, "shares_images_with": [], "id_key_fingerprint": "idkey-0123456789abcdef"}
    del values["phantom"]
    check(values, **{"nih-b000": source})
    of_phantom = changed()
    del of_phantom["phantom"]
    assert "params.yaml has no section `phantom`" in error_of(of_phantom)


def test_a_project_without_tasks_gets_a_section_for_them(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("evaluate: {seed: 0}\nreport: {title: null}  # kept\n", encoding="utf-8")
    assert len(migrate(params)) == 2
    assert list(read_params(params)) == ["evaluate", "finetune", "decide", "report"]
    assert (read_params(params)["finetune"], read_params(params)["decide"]) == ({}, [])
    assert "# kept" in params.read_text(encoding="utf-8")
    assert migrate(params) == []


def test_a_task_of_a_batch_that_is_none_is_named() -> None:
    assert "finetune names nih-b000; expected one of ['phantom-b000']" in error_of(
        changed(finetune={"nih": "nih-b000"})
    )


def test_the_gate_decides_about_the_first_encoder_and_needs_bounds() -> None:
    figures = {"compositionality": {"margin": 0, "floor": 0}}
    bounds = {"frozen": {"batch": "phantom-b000", "fingerprint": 64 * "0"}, "figures": figures}
    check(changed(decide=["trained"], operations={"gate": bounds}))
    assert "operations.gate is empty" in error_of(changed(decide=["trained"]))
    other = changed(decide=["untrained"], operations={"gate": bounds})
    assert "decide names untrained; expected the first of `encoders`, trained" in error_of(other)


EARLIER_EVALUATION = """# of an earlier version
evaluate:
  seed: 0
  composition: {regions_per_patient: 4}
  decomposition: {batch: 32}   # kept
  correspondence:
    num_patients: 32
    locations_per_cell: 2
    window_step_cells: 4
  reference: REFERENCE
  num_examples: 4
"""


@pytest.mark.parametrize("has_reference", [True, False])
def test_encoders_and_properties_of_an_earlier_version_get_sections_of_their_own(
    tmp_path: Path, has_reference: bool
) -> None:
    demo, params = read_params(ROOT / "configs/demo.yaml"), tmp_path / "params.yaml"
    reference = demo["imports"]["imagenet"]
    text = EARLIER_EVALUATION.replace("REFERENCE", json.dumps(reference if has_reference else None))
    params.write_text(text, encoding="utf-8")
    assert len(migrate(params)) == 1 + 3
    values = read_params(params)
    assert list(values) == ["imports", "encoders", "evaluate"]
    expected = demo["encoders"] if has_reference else {k: v for k, v in demo["encoders"].items() if k != "imagenet"}
    assert values["encoders"] == expected
    assert values["imports"] == ({"imagenet": reference} if has_reference else {})
    assert values["evaluate"] == {
        "seed": 0,
        "dense": {"locations_per_cell": 2, "window_step_cells": 4},
        "properties": {
            "composition": {"regions_per_patient": 4, "cuts": ["2x2"], "further_regions_per_patient": 1},
            "decomposition": {"num_candidates": 32, "further_candidates": []},
            "correspondence": {"num_patients": 32},
            "colours": {},
            "labels": {},
            "explorer": {"num_patients": 32, "num_mirrored": 16, "num_components": 64},
        },
        "num_examples": 4,
    }
    once = params.read_bytes()
    assert b"# of an earlier version" in once
    assert migrate(params) == []
    assert params.read_bytes() == once


def test_sections_of_properties_get_what_was_added_to_them_and_measure_what_they_did(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    retrieval = "retrieval: {num_patients: 32, num_landmarks: 8, side: 0.3}  # kept"
    params.write_text(f"evaluate:\n  properties:\n    labels: {{}}\n    {retrieval}\n", encoding="utf-8")
    assert migrate(params) == [f"{params}: evaluate.properties.retrieval has further_sides: [] now"]
    found = read_params(params)["evaluate"]["properties"]["retrieval"]
    assert RetrievalParams.from_params(found, "retrieval").further_sides == ()
    assert "# kept" in params.read_text()
    assert migrate(params) == []


MIXTURES: list[tuple[dict[str, tuple[Any, ...]], str | None]] = [
    ({"nih": ("nih-chestxray14", 1), "chexpert": ("chexpert", 1), "own": ("folder", 1)}, None),
    ({"idrid": ("idrid", 3), "own": ("folder", 3)}, None),
    ({"nih": ("nih-chestxray14", 1), "drive": ("drive", 1)}, "nih-b000 (chest radiographs, grey), drive-b000 (fundus"),
    ({"nih": ("nih-chestxray14", 1), "own": ("folder", 3)}, "own-b000 (own images, in colour)"),
    ({"nih": ("nih-chestxray14", 1), "own": ("dicom", 1, "chest")}, None),
    ({"nih": ("nih-chestxray14", 1), "own": ("folder", 1, "hand")}, "own-b000 (hand, grey)"),
    ({"one": ("folder", 1, "chest"), "other": ("folder", 1, "hand")}, "one-b000 (chest radiographs, grey), other-b000"),
]


@pytest.mark.parametrize(("sets", "found"), MIXTURES)
def test_training_on_several_kinds_of_pictures_needs_an_explicit_yes(
    sets: dict[str, tuple[Any, ...]], found: str | None
) -> None:
    values = changed(batches={}, mix={})
    sources: dict[str, dict[str, Any]] = {}
    for name, (kind, channels, *modality) in sets.items():
        dep = f"data/manifests/{name}-b000.jsonl"
        sources[f"{name}-b000"] = {"kind": kind, "dep": dep, "channels": channels, "shares_images_with": []} | {
            "dep_sha256": 64 * "0",
            "id_key_fingerprint": "idkey-0123456789abcdef",
            "modality": modality[0] if modality else None,
        }
        values["batches"][f"{name}-b000"] = dep
        values["mix"][f"{name}-b000"] = {"weight": 1.0, "mean": 0.5, "std": 0.2}
    values["evaluate"]["batch"] = f"{next(iter(sets))}-b000"
    if found is None:
        check(values, **sources)
        return
    with pytest.raises(ConfigError) as caught:
        check(values, **sources)
    assert found in str(caught.value)
    assert "pretrain.accept_mixed_images: true" in str(caught.value)
    values["pretrain"]["accept_mixed_images"] = True
    check(values, **sources)
    values["pretrain"]["accept_mixed_images"] = False
    values["mix"][f"{list(sets)[1]}-b000"]["weight"] = 0.0
    check(values, **sources)


def test_the_typed_tree_is_read_without_timm_and_the_command_line_without_torch() -> None:
    """Every command reads the tree; whoever checks a backbone's name asks timm, and imports it then."""
    program = (
        "import sys\n"
        "import ace.__main__\n"
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])\n"
        "import ace.config\n"  # beside the sections of encoders and properties lies code that needs torch
        "print([name for name in ('timm', 'torchvision') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
