"""What stands in a sample's description."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.canvas import Cells
from shards.sample import _json_bytes, _with_cells


@given(
    hnp.arrays(np.float64, (3, 3), elements=st.floats(0, 255)),
    hnp.arrays(np.float64, (3, 3), elements=st.floats(0, 128)),
    st.sampled_from(["in the cells", '"mean":"in the cells"', 'a","mean":"in the cells"']),
)
def test_the_levels_of_cells_are_written_as_json_writes_them(mean: np.ndarray, std: np.ndarray, text: str) -> None:
    cells = Cells(np.round(mean, 2), np.round(std, 2), mean > 8, 0, 0, 9)
    marked = {"source_id": text, "grid": {"mean": "in the cells", "std": "in the cells", "bank": []}}
    written = _with_cells(_json_bytes(marked), cells)
    expected = {"source_id": text, "grid": {"mean": cells.mean.tolist(), "std": cells.std.tolist(), "bank": []}}
    assert written == json.dumps(expected, separators=(",", ":")).encode()
