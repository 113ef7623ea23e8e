"""Crops per second of photometric augmentation: batched on the device against OpenCV crop by crop on one core.

The same records and crops, in turn, in one process: `host` as a loader's process carries them out, `device` as training
does on the batch. What is drawn differs from round to round as in training; a ratio is that of the same records, and
medians are reported. First the two are held to each other: no pixel may differ by more than one grey level. Smooth
random crops; on an accelerator they lie there already, as a batch's do. `ms_per_step` is what a step costs the training
process. Last line: one JSON object with `ratio_to_host`.

    python benchmarks/augment.py                                       # the demo's configuration: 16 pairs of 128 px
    python benchmarks/augment.py --config ace_vit_b_cxr --batch 16     # 448 px
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from ace.config import Config, resolve
from ace.data.augment import augment
from ace.data.augment_device import augment_batch
from ace.data.augmentation import Augmentation, Augmentations, draw_augmentation
from ace.models.device import default_device
from shards.core.canvas import Pixels

ROOT = Path(__file__).parents[1]
CROPS_PER_SAMPLE = 2


def smooth_crops(num_crops: int, size_px: int, num_channels: int, rng: np.random.Generator) -> list[Pixels]:
    shape = (size_px, size_px) if num_channels == 1 else (size_px, size_px, num_channels)
    noise = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(num_crops))
    return [cv2.normalize(cv2.GaussianBlur(crop, (0, 0), 3.0), None, 0, 255, cv2.NORM_MINMAX) for crop in noise]


def as_batch(crops: list[Pixels]) -> torch.Tensor:
    stacked = np.stack(crops)
    return torch.from_numpy(stacked.reshape(*stacked.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()


def timed(function: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a named configuration (configs/)")
    parser.add_argument("--batch", type=int, help="samples of two crops; the configuration's if not given")
    parser.add_argument("--num-rounds", type=int, default=40, help="after two to warm up")
    arguments = parser.parse_args()
    config = Config.from_params(resolve(arguments.config, ROOT / "configs"), arguments.config)
    params, size_px = config.pretrain.augment, config.grid.spec.crop_px
    num_samples = arguments.batch or config.pretrain.batch_size
    num_crops, num_channels = CROPS_PER_SAMPLE * num_samples, config.pretrain.backbone.in_channels
    device, rng = default_device(), np.random.default_rng(0)
    crops = smooth_crops(num_crops, size_px, num_channels, rng)
    batch = as_batch(crops).to(device)

    def draw() -> list[Augmentation]:
        return [draw_augmentation(params, rng, size_px=size_px) for _ in range(num_crops)]

    def on_host(records: list[Augmentation]) -> list[Pixels]:
        return [augment(crop, record, params) for crop, record in zip(crops, records, strict=True)]

    rounds: list[tuple[float, float]] = []
    num_different = 0
    for number in range(arguments.num_rounds + 2):
        records = draw()
        collated = Augmentations.of([records])
        if collated is None:
            continue
        there = collated.mapped(lambda tensor: tensor.to(device))
        host_s = timed(lambda records=records: on_host(records), torch.device("cpu"))
        device_s = timed(lambda there=there: augment_batch(batch, there, params), device)
        if number < 2:
            difference = (augment_batch(batch, there, params).cpu().int() - as_batch(on_host(records))).abs()
            num_different += int((difference > 0).sum())
            if difference.max() > 1:
                raise SystemExit(f"device and host differ by {int(difference.max())} grey levels: the work differs")
            continue
        rounds.append((host_s, device_s))
    host_s, device_s = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    result = {
        "config": arguments.config,
        "crops": num_crops,
        "crop_px": size_px,
        "channels": num_channels,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "host_crops_per_s": round(num_crops / host_s),
        "device_crops_per_s": round(num_crops / device_s),
        "ms_per_step": {"host": round(1000 * host_s, 2), "device": round(1000 * device_s, 2)},
        "pixels_off_by_one": num_different,
        "ratio_to_host": round(statistics.median(host / there for host, there in rounds), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
