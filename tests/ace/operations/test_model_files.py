"""Exports hold the bytes that were registered or are not there; a difference is named."""

from pathlib import Path

import pytest

from ace.operations.errors import OperationsError
from ace.operations.model_files import export, first_difference
from shards.format.layout import sha256_of


def test_a_copy_with_other_bytes_than_registered_is_not_exported(tmp_path: Path) -> None:
    weights, target = tmp_path / "weights", tmp_path / "served/v1"
    weights.write_text("registered")
    registered = {"weights": sha256_of(weights)}
    weights.write_text("changed since")
    with pytest.raises(OperationsError, match=r"not as recorded: weights has the sha256 .*; nothing was exported"):
        export({"weights": weights}, registered, target)
    assert list(target.parent.iterdir()) == []
    weights.write_text("registered")
    export({"weights": weights}, registered, target)
    assert first_difference(target, registered) is None
