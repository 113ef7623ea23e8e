from typing import Any, get_args

import pytest

from shards.errors import ConfigError
from shards.params import (
    BatchParams,
    PhantomSourceParams,
    RegisteredSourceParams,
    SourceKind,
    SplitParams,
    parse_batches,
)
from shards.sources.registry import MODULES
from tests.shards.datasets import grid_params

FOLDER = {
    "kind": "folder",
    "dep": "data/manifests/a.jsonl",
    "dep_sha256": 64 * "0",
    "root": "images",
    "channels": 1,
    "shares_images_with": [],
    "id_key_fingerprint": "idkey-0123456789abcdef",
}
MIX = {"weight": 1.0, "mean": 0.5, "std": 0.25}


def message(values: Any) -> str:
    with pytest.raises(ConfigError) as error:
        parse_batches(values, "params.yaml: batches")
    return str(error.value)


def test_the_kind_of_a_source_decides_its_class() -> None:
    batches = parse_batches(
        {
            "phantom-b000": {"source": {"kind": "phantom", "dep": "data/phantom"}, "mix": MIX},
            "clinic-b000": {"source": FOLDER, "mix": MIX},
        },
        "params.yaml: batches",
    )
    assert isinstance(batches["phantom-b000"].source, PhantomSourceParams)
    assert isinstance(batches["clinic-b000"].source, RegisteredSourceParams)


@pytest.mark.parametrize("values", [None, {}, [], "phantom"])
def test_no_batches_are_an_error(values: Any) -> None:
    assert "at least one batch" in message(values)


@pytest.mark.parametrize("name", ["a/b", "../x", "1st", "a.b", "", "-x", "a b"])
def test_a_batch_name_must_work_as_path_and_stage(name: str) -> None:
    assert repr(name) in message({name: {"source": FOLDER, "mix": MIX}})


def test_an_unknown_kind_names_the_known_ones() -> None:
    text = message({"a": {"source": {**FOLDER, "kind": "tape"}, "mix": MIX}})
    assert "params.yaml: batches.a.source" in text
    assert "'phantom', 'folder'" in text


def test_a_misspelt_key_of_a_source_is_named() -> None:
    assert "batches.a.source.folder.lables: unknown key" in message(
        {"a": {"source": {**FOLDER, "lables": 1}, "mix": MIX}}
    )


@pytest.mark.parametrize("missing", sorted(FOLDER))
def test_every_value_must_be_written_down(missing: str) -> None:
    source = {key: value for key, value in FOLDER.items() if key != missing}
    with pytest.raises(ConfigError):
        BatchParams.from_params({"source": source, "mix": MIX}, "a")


def test_a_manifest_needs_its_hash() -> None:
    assert "a.source.folder.dep_sha256" in message({"a": {"source": {**FOLDER, "dep_sha256": "abc"}, "mix": MIX}})


def test_splits_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match=r"0\.6 \+ val 0\.1 \+ test 0\.2 = 0\.9; they must sum to 1"):
        SplitParams.from_params({"train": 0.6, "val": 0.1, "test": 0.2}, "shard.splits")


@pytest.mark.parametrize("fingerprint", ["", "0123456789abcdef", "idkey-", "idkey-XYZ"])
def test_a_fingerprint_has_its_form(fingerprint: str) -> None:
    source = {**FOLDER, "id_key_fingerprint": fingerprint}
    assert "a.source.folder.id_key_fingerprint" in message({"a": {"source": source, "mix": MIX}})


def test_all_batches_have_the_same_identity_key() -> None:
    own = {"source": FOLDER, "mix": MIX}
    phantom = {"source": {"kind": "phantom", "dep": "data/phantom"}, "mix": MIX}
    other = {"source": {**FOLDER, "id_key_fingerprint": "idkey-fedcba9876543210"}, "mix": MIX}
    assert list(parse_batches({"p": phantom, "a": own, "b": own}, "here")) == ["p", "a", "b"]
    text = message({"p": phantom, "a": own, "b": other})
    assert "(a idkey-0123456789abcdef, b idkey-fedcba9876543210); expected the same one in every batch" in text


def test_a_grid_that_cannot_exist_is_a_config_error_naming_its_section() -> None:
    with pytest.raises(ConfigError, match=r"test: grid: coarse crop larger than the canvas.*n = 3"):
        grid_params(n=3)


def test_grid_params_become_their_spec() -> None:
    params = grid_params()
    assert (params.spec.canvas_px, params.spec.crop_px) == (48, 16)
    assert [(scale.k, scale.l, scale.weight) for scale in params.spec.scales] == [(2, 2, 1.0), (1, 2, 0.5)]


def test_every_kind_of_the_registry_may_be_registered_and_no_other() -> None:
    assert {"phantom", *get_args(SourceKind)} == set(MODULES)
