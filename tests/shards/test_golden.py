"""What the shards of a small phantom hold, as the code that first wrote it held: images, masks, landmarks, index.

Pixels and fields are compared rather than the bytes of tars, which change with the compressor of the libraries. A
change of the sum is a change of every phantom that was ever built; where it is meant, the sum is printed by the test.
"""

import hashlib
import json
from pathlib import Path

from shards.build import build_shards
from shards.execution import Processes
from shards.read import ShardIndex, ShardReader
from tests.shards.datasets import grid_params, shard_params, write_phantom

SHA256 = "3d7751bfbb4932e51b278b972a6142b8d64bb0426a0cc6953fe00f1d3b0eb60e"
_OF_BYTES = ("shards", "samples", "reports")


def test_the_shards_of_a_phantom_hold_what_they_always_held(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "out", execution=Processes(1))
    reader = ShardReader(ShardIndex.open(tmp_path / "out"))
    values = {name: value for name, value in reader.index.values.items() if name not in _OF_BYTES}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for row in range(len(reader.index.rows)):
        sample = reader.read(row)
        digest.update(json.dumps([sample.meta, sample.landmarks], sort_keys=True).encode())
        digest.update(sample.image.tobytes())
        for structure, mask in sorted(sample.masks().items()):
            digest.update(structure.encode() + mask.tobytes())
    assert digest.hexdigest() == SHA256
