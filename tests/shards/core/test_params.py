import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.core.params import (
    BatchParams,
    PhantomSourceParams,
    RegisteredSourceParams,
    SourceKind,
    SplitParams,
    parse_mix,
    parse_names,
)
from shards.delivery.batches import read_batch, read_batches
from shards.sources.registry import MODULES
from tests.support.datasets import grid_params, shard_params, write_batch

FOLDER = {
    "kind": "folder",
    "dep": "data/manifests/a.jsonl",
    "dep_sha256": 64 * "0",
    "channels": 1,
    "shares_images_with": [],
    "id_key_fingerprint": "idkey-0123456789abcdef",
}
PHANTOM = {"kind": "phantom", "dep": "data/phantom"}


def item(source: Any) -> dict[str, Any]:
    """The content of a batch's file."""
    settings = {"grid": grid_params().model_dump(), "shard": shard_params().model_dump()}
    return {"source": source, "measured": {"mean": 0.5, "std": 0.25}, **settings}


def message(source: Any) -> str:
    with pytest.raises(ConfigError) as error:
        BatchParams.from_params(item(source), "batches/a.yaml")
    return str(error.value)


def test_the_kind_of_a_source_decides_its_class() -> None:
    assert isinstance(BatchParams.from_params(item(PHANTOM), "here").source, PhantomSourceParams)
    assert isinstance(BatchParams.from_params(item(FOLDER), "here").source, RegisteredSourceParams)


@pytest.mark.parametrize("parse", [parse_names, parse_mix])
@pytest.mark.parametrize("values", [None, {}, [], "phantom"])
def test_no_batches_are_an_error(parse: Callable[[Any, str], object], values: Any) -> None:
    with pytest.raises(ConfigError, match="at least one batch"):
        parse(values, "params.yaml: here")


@pytest.mark.parametrize("name", ["a/b", "../x", "1st", "a.b", "", "-x", "a b"])
def test_a_batch_name_must_work_as_path_and_stage(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(name))):
        parse_names({name: "data/raw"}, "params.yaml: batches")


def test_a_project_of_an_earlier_version_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"batches\.a: .* earlier version.*`python -m ace config migrate`"):
        parse_names({"a": {"source": FOLDER, "mix": {"weight": 1.0}}}, "params.yaml: batches")


def test_an_unknown_kind_names_the_known_ones() -> None:
    text = message({**FOLDER, "kind": "tape"})
    assert "batches/a.yaml: source" in text
    assert "'phantom', 'folder'" in text


def test_a_misspelt_key_of_a_source_is_named() -> None:
    assert "source.folder.lables: unknown key" in message({**FOLDER, "lables": 1})


@pytest.mark.parametrize("missing", sorted(FOLDER))
def test_every_value_must_be_written_down(missing: str) -> None:
    assert message({key: value for key, value in FOLDER.items() if key != missing})


def test_a_manifest_needs_its_hash() -> None:
    assert "source.folder.dep_sha256" in message({**FOLDER, "dep_sha256": "abc"})


def test_splits_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match=r"0\.6 \+ val 0\.1 \+ test 0\.2 = 0\.9; they must sum to 1"):
        SplitParams.from_params({"train": 0.6, "val": 0.1, "test": 0.2}, "shard.splits")


@pytest.mark.parametrize("fingerprint", ["", "0123456789abcdef", "idkey-", "idkey-XYZ"])
def test_a_fingerprint_has_its_form(fingerprint: str) -> None:
    assert "source.folder.id_key_fingerprint" in message({**FOLDER, "id_key_fingerprint": fingerprint})


def test_what_one_reader_of_a_file_changes_no_other_sees(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("mix:\n  a: {weight: 1.0}\n")
    read_params(path)["mix"]["a"]["weight"] = 2.0
    assert read_params(path) == {"mix": {"a": {"weight": 1.0}}}
    path.write_text("mix:\n  a: {weight: 3.0}\n")
    assert read_params(path) == {"mix": {"a": {"weight": 3.0}}}


def test_all_batches_have_the_same_identity_key(tmp_path: Path) -> None:
    other = {**FOLDER, "id_key_fingerprint": "idkey-fedcba9876543210"}
    for name, source in {"p": PHANTOM, "a": FOLDER, "b": FOLDER, "c": other}.items():
        values = BatchParams.from_params(item(source), name)
        write_batch(tmp_path, name, values.source, values.grid, values.shard)
    deps = dict.fromkeys("abc", FOLDER["dep"]) | {"p": PHANTOM["dep"]}
    params = tmp_path / "params.yaml"
    assert list(read_batches(params, {"batches": {name: deps[name] for name in "pab"}})) == ["p", "a", "b"]
    with pytest.raises(ConfigError) as error:
        read_batches(params, {"batches": {name: deps[name] for name in "pac"}})
    expected = "(a idkey-0123456789abcdef, c idkey-fedcba9876543210); expected the same one in every batch"
    assert expected in str(error.value)


def test_a_batch_and_params_yaml_name_one_path(tmp_path: Path) -> None:
    values = BatchParams.from_params(item(PHANTOM), "p")
    write_batch(tmp_path, "p", values.source, values.grid, values.shard)
    with pytest.raises(ConfigError, match=r"batches\.p: found elsewhere, and .*p\.yaml has data/phantom"):
        read_batches(tmp_path / "params.yaml", {"batches": {"p": "elsewhere"}})
    with pytest.raises(ConfigError, match=r"q\.yaml: not found, and params\.yaml names the batch q"):
        read_batches(tmp_path / "params.yaml", {"batches": {"q": "elsewhere"}})


def test_the_file_of_a_batch_is_read_as_it_was_written(tmp_path: Path) -> None:
    source = RegisteredSourceParams.from_params({**FOLDER, "root": "/some where/ else"}, "a")
    values = BatchParams.from_params(item(source), "a")
    write_batch(tmp_path, "a", source, values.grid, values.shard)
    found = read_batch("a", tmp_path)
    assert (found.source, found.grid, found.shard) == (source, values.grid, values.shard)
    assert "else" not in (tmp_path / "batches/a.yaml").read_text(), "where images are decides nothing"


def test_a_grid_that_cannot_exist_is_a_config_error_naming_its_section() -> None:
    with pytest.raises(ConfigError, match=r"test: grid: coarse crop larger than the canvas.*n = 3"):
        grid_params(n=3)


def test_grid_params_become_their_spec() -> None:
    params = grid_params()
    assert (params.spec.canvas_px, params.spec.crop_px) == (48, 16)
    assert [(scale.k, scale.l, scale.weight) for scale in params.spec.scales] == [(2, 2, 1.0), (1, 2, 0.5)]


def test_every_kind_of_the_registry_may_be_registered_and_no_other() -> None:
    assert {"phantom", *get_args(SourceKind)} == set(MODULES)
