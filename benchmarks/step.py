"""Time of a full training step against the backbone alone, in one run, interleaved.

The backbone alone gets the same treatment: student forward and backward on both crops, teacher forward on both, the
optimiser, clipping and the average of its parameters. What is left is the price of targets, heads, losses and monitors.
Last line: one JSON object with `ratio_to_backbone`.

    python benchmarks/step.py [--config demo] [--num-steps 6]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ace.config import Config, resolve
from ace.data.batches import CropPairItem, PairBatch, collate
from ace.models.encoder import default_device
from ace.training.pretrain import build_state, train_step
from ace.training.state import TrainState
from shards.grid import draw_crop_pair
from shards.progress import progress

ROOT = Path(__file__).parents[1]


def random_batch(config: Config, rng: np.random.Generator) -> PairBatch:
    spec, channels = config.grid.spec, config.pretrain.backbone.in_channels
    shape = (spec.crop_px, spec.crop_px) if channels == 1 else (spec.crop_px, spec.crop_px, 3)
    items = []
    for number in range(config.pretrain.batch_size):
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        coarse, fine = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
        visible = np.ones((spec.t, spec.t), dtype=bool)
        items.append(CropPairItem(coarse, fine, pair, 0.5, 0.25, f"random-{number}", visible, visible))
    return collate(items)


def backbone_step(state: TrainState, optimizer: torch.optim.Optimizer, batch: PairBatch, clip_norm: float) -> None:
    crops = torch.cat([batch.normalised_coarse(), batch.normalised_fine()])
    loss = state.student.backbone(crops).square().mean()
    with torch.no_grad():
        state.teacher.backbone(crops)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.student.backbone.parameters(), clip_norm)
    optimizer.step()
    with torch.no_grad():
        ours, theirs = list(state.teacher.backbone.parameters()), list(state.student.backbone.parameters())
        torch._foreach_lerp_(ours, theirs, 0.01)


def timed(function: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a named configuration (configs/)")
    parser.add_argument("--num-steps", type=int, default=6, help="timed steps of each kind, after two to warm up")
    arguments = parser.parse_args()
    config = Config.from_params(resolve(arguments.config, ROOT / "configs"), arguments.config)
    device = default_device()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    # No monitors in the timed steps: training computes them on logged steps only.
    params = config.pretrain.model_copy(update={"log_every_steps": 10**9})
    state = build_state(params, config.grid, device)
    state.student.train()
    alone = build_state(params, config.grid, device)
    optimizer = torch.optim.AdamW(alone.student.backbone.parameters(), lr=1e-3, fused=True)
    batch = random_batch(config, np.random.default_rng(0)).to(device)
    full, backbone = [], []
    for step in progress(
        range(arguments.num_steps + 2), total=arguments.num_steps + 2, description="step", unit="pair"
    ):
        seconds = timed(lambda: train_step(state, batch, params, config.grid.t, steps_per_epoch=10), device)
        seconds_alone = timed(lambda: backbone_step(alone, optimizer, batch, params.clip_norm), device)
        if step >= 2:
            full.append(seconds)
            backbone.append(seconds_alone)
    result = {
        "config": arguments.config,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "step_s": round(statistics.median(full), 4),
        "backbone_s": round(statistics.median(backbone), 4),
        "ratio_to_backbone": round(statistics.median(full) / statistics.median(backbone), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
