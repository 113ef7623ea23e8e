"""Crop pairs per second of the training loader against decoding the same images alone, one process, one run.

Shards of random smooth images are built in a temporary folder with the real writer. Last line: one JSON object with
`ratio_to_decode` (no augmentation here: it runs on the training device) and `ratio_to_decode_augmented` (where: host).

    python benchmarks/loader.py [--num-images 96] [--image-format png]
"""

import argparse
import csv
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ace.config import Config, resolve
from ace.data.loader import CropDataset
from shards.build import build_shards
from shards.params import MixParams, PhantomSourceParams
from shards.read import ShardIndex

ROOT = Path(__file__).parents[1]


def write_images(root: Path, num_images: int, size_px: int) -> None:
    """Smooth noise in the phantom's layout: compresses as radiographs do, near enough."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "study_id", "view"])
        for number in range(num_images):
            smooth = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
            pixels = np.asarray(smooth.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / "images" / f"p{number}-i0.png")
            writer.writerow([f"p{number}-i0", f"p{number}", f"p{number}-s0", "PA"])
    (root / "landmarks.csv").write_text("image_id,landmark,row,col\n")
    (root / "dataset.json").write_text(json.dumps({"name": "noise"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a named configuration (configs/)")
    parser.add_argument("--num-images", type=int, default=96)
    parser.add_argument("--image-format", choices=("png", "jpg"), default="png")
    arguments = parser.parse_args()
    config = Config.from_params(resolve(arguments.config, ROOT / "configs"), arguments.config)
    everything = config.shard.splits.model_copy(update={"train": 1.0, "val": 0.0, "test": 0.0})
    shard = config.shard.model_copy(update={"splits": everything, "image_format": arguments.image_format})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["ACE_SCRATCH"] = str(root / "scratch")
        write_images(root / "raw", arguments.num_images, config.grid.spec.canvas_px)
        source = PhantomSourceParams(kind="phantom", dep=str(root / "raw"))
        build_shards("noise", source, config.grid, shard, root / "noise", num_workers=1)
        index = ShardIndex.open(root / "noise")
        plain, augmented = (
            CropDataset(
                [(index, MixParams(weight=1.0, mean=0.5, std=0.25))],
                config.grid.spec,
                objective="ace",
                views=config.pretrain.views,
                crops="fresh",
                augment=augment,
                in_channels=1,
                seed=0,
            )
            for augment in (None, config.pretrain.augment.model_copy(update={"where": "host"}))
        )
        encoded = [encoded_image(index, row) for row in range(len(index.rows))]
        seconds: dict[str, list[float]] = {"decode": [], "plain": [], "augmented": []}
        for position, data in enumerate(encoded):
            started = time.perf_counter()
            np.array(Image.open(io.BytesIO(data)))
            seconds["decode"].append(time.perf_counter() - started)
            for name, dataset in (("plain", plain), ("augmented", augmented)):
                started = time.perf_counter()
                dataset[(0, position, 0, 0)]
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "config": arguments.config,
        "image_format": arguments.image_format,
        "images_per_s": round(1 / medians["augmented"], 1),
        "ratio_to_decode": round(medians["decode"] / medians["plain"], 3),
        "ratio_to_decode_augmented": round(medians["decode"] / medians["augmented"], 3),
    }
    print(json.dumps(result))


def encoded_image(index: ShardIndex, row: int) -> bytes:
    entry = index.rows[row]
    with (index.root / index.shards[entry["shard"]]["name"]).open("rb") as file:
        file.seek(int(entry["image_start"]))
        return file.read(int(entry["image_bytes"]))


if __name__ == "__main__":
    main()
