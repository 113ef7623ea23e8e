"""What the stage `shard` writes for a few drawn images: decoded pixels, and every field that is no hash of bytes.

`python -m tests.support.golden` records it beside this file, under the version of the shards that the code has.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.build.plan import VERSION
from shards.build.stage import build_shards
from shards.core.params import SourceParams
from shards.reading.reader import ShardIndex, ShardReader
from tests.support.datasets import (
    Here,
    folder_params,
    grid_params,
    shard_params,
    smooth_image,
    write_folder,
    write_phantom,
)

FOLDER = Path(__file__).parent / "golden"
_OF_BYTES = ("shards", "samples", "reports")
Arrays = dict[str, np.ndarray]


def built(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Build small shard sets below a folder; return their fields and their images and masks."""
    fields: dict[str, Any] = {}
    arrays: Arrays = {}
    sources = {"phantom": write_phantom(folder / "phantom"), "own": _odd_images(folder / "own")}
    for name, source in sources.items():
        grid = grid_params(**({} if name == "phantom" else {"trim_level": 10}))
        out = folder / "sets" / name
        build_shards(f"{name}-b000", source, grid, shard_params(), out, execution=Here())
        reader = ShardReader(ShardIndex.open(out))
        samples = {}
        for row in range(len(reader.index.rows)):
            sample = reader.read(row)
            samples[sample.key] = [sample.meta, sample.landmarks]
            arrays[f"{name}/{sample.key}"] = np.asarray(sample.image)
            arrays |= {f"{name}/{sample.key}/{structure}": mask for structure, mask in sample.masks().items()}
        values = {key: value for key, value in reader.index.description.to_json().items() if key not in _OF_BYTES}
        fields[name] = {"index": values, "samples": samples}
    return json.loads(json.dumps(fields)), arrays


def _odd_images(folder: Path) -> SourceParams:
    """Colour, sixteen bits, a wide picture in a black frame, a small one."""
    write_folder(folder, ["grey.png", "small.png"], (70, 50))
    colour = np.stack([smooth_image(90, 60, number) for number in (50, 51, 52)], axis=2)
    Image.fromarray(colour).save(folder / "colour.png")
    deep = smooth_image(64, 80, 53).astype(np.uint16) * 201 + np.arange(80, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    framed = np.zeros((100, 140), np.uint8)
    framed[20:90, 15:120] = np.maximum(smooth_image(70, 105, 54), 30)
    Image.fromarray(framed).save(folder / "framed.png")
    return folder_params(folder, folder.with_suffix(".jsonl"), channels=3)


def recorded(version: int) -> tuple[dict[str, Any], Arrays]:
    """Read what shards of a version hold."""
    fields = json.loads((FOLDER / f"shard-{version}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"shard-{version}.npz") as arrays:
        return fields, dict(arrays)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found, pixels = built(Path(temporary))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"shard-{VERSION}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"shard-{VERSION}.npz", **pixels)
