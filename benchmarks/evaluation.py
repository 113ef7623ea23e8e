"""Images a second of the evaluation against the bare forward pass, and its memory by the number of regions.

Compositionality is asked of the shipped model on canvases of noise: regions are drawn, cut out of canvases, resampled,
normalised, embedded and compared, five crops a region. The bare pass runs the same network on as many crops that lie
ready as normalised tensors. Both run in turn; the ratio is the median of the rounds' ratios, since what else the
machine does changes slowly. Peak memory is that of a process of its own for each number of regions. Last line: one JSON
object.

    python benchmarks/evaluation.py [--num-patients 32] [--regions 2 16] [--rounds 5]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ace.config import Config, resolve
from ace.embed.embedder import Embedder, tokens_of
from ace.embed.encoder import load_encoder
from ace.properties.composition import CompositionParams, compare, embed_quadrants, plan_composition
from ace.zoo.shipped import find_model
from shards.core.normalisation import Normalisation

ROOT = Path(__file__).parents[1]
MODEL, BATCH = "cxr-small", "noise"


def open_embedder(images_per_forward: int) -> Embedder:
    encoder = load_encoder(find_model(MODEL), which="teacher")
    levels = Normalisation.of(0.5, 0.25).per_channel(encoder.in_channels, BATCH)
    return Embedder(
        encoder=replace(encoder, given={BATCH: levels}), batch=BATCH, images_per_forward=images_per_forward, name=MODEL
    )


def ask(embedder: Embedder, num_patients: int, regions_per_patient: int) -> int:
    """Compositionality of canvases of noise; returns how many crops were embedded."""
    values = resolve("demo", ROOT / "configs")["evaluate"]["properties"]["composition"]
    params = CompositionParams.from_params({**values, "regions_per_patient": regions_per_patient}, "composition")
    rng, spec = np.random.default_rng(0), embedder.encoder.spec
    canvases = [rng.integers(0, 256, (spec.canvas_px, spec.canvas_px), dtype=np.uint8) for _ in range(num_patients)]
    plan = plan_composition(num_patients, params, rng)
    compare(plan, *embed_quadrants(embedder, canvases, plan))
    return 5 * len(plan.regions)


def forward(embedder: Embedder, num_crops: int) -> None:
    """The network alone, on one batch of noise again and again."""
    encoder, size = embedder.encoder, embedder.images_per_forward
    images = torch.randn(size, encoder.in_channels, encoder.input_px, encoder.input_px, device=encoder.device)
    for _ in range(0, num_crops, size):
        tokens_of(encoder, images)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()


def peak_mb(arguments: argparse.Namespace, regions: int) -> float:
    command = [sys.executable, __file__, "--num-patients", str(arguments.num_patients), "--memory-of", str(regions)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return float(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-patients", type=int, default=32)
    parser.add_argument("--regions", type=int, nargs=2, default=[2, 16], metavar="N", help="regions a patient")
    parser.add_argument("--rounds", type=int, default=5, help="timed ones, after one to warm up")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = Config.from_params(resolve("demo", ROOT / "configs"), "demo")
    embedder = open_embedder(config.evaluate.images_per_forward)
    if arguments.memory_of is not None:
        ask(embedder, arguments.num_patients, arguments.memory_of)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
        return
    few, many = arguments.regions
    peaks = {regions: round(peak_mb(arguments, regions), 1) for regions in (few, many)}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    rounds = []
    for _ in range(arguments.rounds + 1):
        seconds = {}
        num_crops = 0
        for kind in ("evaluation", "forward"):
            started = {name: clock() for name, clock in clocks.items()}
            if kind == "evaluation":
                num_crops = ask(embedder, arguments.num_patients, few)
            else:
                forward(embedder, num_crops)
            seconds[kind] = {name: clock() - started[name] for name, clock in clocks.items()}
        rounds.append((num_crops, seconds))
    rounds = rounds[1:]
    result = {
        "model": MODEL,
        "device": platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "timm")},
        "num_crops": rounds[0][0],
        **{
            f"{kind}_images_per_s": round(statistics.median(n / seconds[kind]["wall"] for n, seconds in rounds), 1)
            for kind in ("evaluation", "forward")
        },
        **{
            f"speed_over_forward_{name}": round(
                statistics.median(seconds["forward"][name] / seconds["evaluation"][name] for _, seconds in rounds), 3
            )
            for name in clocks
        },
        "peak_mb_by_regions": peaks,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
