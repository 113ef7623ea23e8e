import hmac
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.core.errors import IdKeyError
from shards.core.identity import (
    KEY_FILE_VARIABLE,
    PUBLIC_KEY,
    IdKey,
    create_key,
    load_id_key,
    open_splits,
    read_id_key,
    split_of,
)
from shards.core.params import SplitParams
from shards.core.records import Split

SPLITS = SplitParams(train=0.6, val=0.04, test=0.36)
OTHER_KEY = IdKey(bytes(32), is_public=False)


@given(st.text(max_size=20))
def test_pseudonyms_are_hex_and_differ_by_purpose_and_key(name: str) -> None:
    pseudonyms = [key.pseudonym(use, name) for key in (PUBLIC_KEY, OTHER_KEY) for use in ("patient", "study", "source")]
    assert all(re.fullmatch(r"[0-9a-f]{16}", pseudonym) for pseudonym in pseudonyms)
    assert len(set(pseudonyms)) == len(pseudonyms)


def test_a_pseudonym_is_the_documented_hash() -> None:
    # A change here would rename every patient of every project and move them to other splits.
    digest = hmac.new(OTHER_KEY.secret, b"ace/patient/MRN-1", "sha256").hexdigest()
    assert OTHER_KEY.pseudonym("patient", "MRN-1") == digest[:16] == "bfc1c70dba200c57"
    assert OTHER_KEY.position("MRN-1") == 0.5466230938581239


def test_patients_fall_into_splits_in_their_proportions() -> None:
    names = [split_of(OTHER_KEY.position(f"patient {number}"), SPLITS) for number in range(6000)]
    for split in ("train", "val", "test"):
        share, expected = names.count(split) / 6000, getattr(SPLITS, split)
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 6000)


@given(st.text(max_size=20))
def test_a_split_of_zero_gets_nobody_and_a_split_of_one_everybody(patient: str) -> None:
    assert split_of(PUBLIC_KEY.position(patient), SplitParams(train=0, val=0, test=1)) == "test"
    assert split_of(PUBLIC_KEY.position(patient), SplitParams(train=0.5, val=0.5, test=0)) != "test"


def test_another_key_splits_the_same_patients_otherwise() -> None:
    patients = [str(number) for number in range(200)]
    ours, theirs = (
        [split_of(key.position(patient), SPLITS) for patient in patients] for key in (PUBLIC_KEY, OTHER_KEY)
    )
    assert ours != theirs


def test_moving_a_border_moves_only_patients_next_to_it() -> None:
    patients = [str(number) for number in range(500)]
    before = [split_of(PUBLIC_KEY.position(patient), SPLITS) for patient in patients]
    after = [split_of(PUBLIC_KEY.position(p), SplitParams(train=0.7, val=0.04, test=0.26)) for p in patients]
    assert {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]} <= {
        ("val", "train"),
        ("test", "train"),
        ("test", "val"),
    }


def test_the_fingerprint_does_not_contain_the_key() -> None:
    assert OTHER_KEY.secret.hex() not in OTHER_KEY.fingerprint
    assert OTHER_KEY.secret.hex() not in repr(OTHER_KEY)
    assert PUBLIC_KEY.fingerprint != OTHER_KEY.fingerprint


def test_a_created_key_loads_and_only_its_owner_may_read_it(id_key: str, tmp_path: Path) -> None:
    key = load_id_key(id_key)
    assert key.fingerprint == id_key
    assert not key.is_public
    assert stat.S_IMODE((tmp_path / "keys" / "id.key").stat().st_mode) == 0o600


def test_two_created_keys_differ(tmp_path: Path) -> None:
    assert create_key(tmp_path / "a") != create_key(tmp_path / "b")


def test_a_key_is_never_overwritten(id_key: str, tmp_path: Path) -> None:
    with pytest.raises(IdKeyError, match="never overwritten"):
        create_key(tmp_path / "keys" / "id.key")
    assert read_id_key().fingerprint == id_key


def test_a_key_is_not_written_into_a_git_work_tree(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(IdKeyError, match="outside it"):
        create_key(tmp_path / "deep" / "down" / "id.key")
    assert not (tmp_path / "deep").exists()


def test_without_a_key_the_message_says_how_to_get_one() -> None:
    with pytest.raises(IdKeyError, match=r"ACE_ID_KEY_FILE is not set.*python -m shards key new PATH"):
        load_id_key("")


@pytest.mark.parametrize("content", ["", "00ff", "no hex at all", "ä" * 64])
def test_a_file_that_is_no_key_is_refused(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id.key").write_text(content, encoding="utf-8")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "id.key"))
    with pytest.raises(IdKeyError, match="not a key; expected 64 hex digits"):
        read_id_key()


def test_a_missing_key_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(IdKeyError, match=r"gone: No such file.*backup"):
        read_id_key()


@pytest.mark.parametrize("expected", ["", "idkey-0123456789abcdef"])
def test_another_fingerprint_is_refused_and_both_are_shown(id_key: str, expected: str) -> None:
    with pytest.raises(IdKeyError) as error:
        load_id_key(expected)
    assert id_key in str(error.value)
    assert f"'{expected}'" in str(error.value)


@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["train", "val", "test"]))
def test_an_official_split_is_kept_where_the_dataset_has_all_three(position: float, official: Split) -> None:
    splits = open_splits(official, frozenset({"train", "val", "test"}))
    assert split_of(position, SPLITS, splits) == official


@given(st.floats(0, 1, exclude_max=True))
def test_without_official_validation_part_of_official_training_becomes_it(position: float) -> None:
    fractions, official = SplitParams(train=0.3, val=0.1, test=0.6), frozenset[Split]({"train", "test"})
    found = split_of(position, fractions, open_splits("train", official))
    assert found == ("train" if position < 0.75 else "val")
    assert split_of(position, fractions, open_splits("test", official)) == "test"


def test_where_training_has_no_share_an_official_training_image_stays_one() -> None:
    only_test = SplitParams(train=0.0, val=0.0, test=1.0)
    assert split_of(0.2, only_test, open_splits("train", frozenset({"train", "test"}))) == "train"
