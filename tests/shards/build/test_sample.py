"""What stands in a sample's description."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shards.build.encode import _json_bytes

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.recursive(
        LEAVES | st.text(st.characters(codec="utf-8")),
        lambda parts: st.lists(parts) | st.dictionaries(st.text(st.characters(codec="utf-8")), parts),
        max_leaves=20,
    )
)
def test_every_json_parser_reads_what_was_written(value: Any) -> None:
    assert json.loads(_json_bytes(value)) == value


def test_what_is_no_number_is_not_known() -> None:
    assert json.loads(_json_bytes({"spacing_mm": [math.nan, math.inf]})) == {"spacing_mm": [None, None]}
