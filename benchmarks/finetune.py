"""Time of a fine-tuning step against the bare step: forward, loss, backward, clipping and AdamW on ready tensors.

The shipped encoder with the head of a task (configs/tasks) learns a batch of noise. `ours` is the step as
`python -m ace finetune` takes it: the schedule, its seed, normalisation, what is known of the labels, and a check that
all is finite. `bare` is the same network and optimiser on images that are normalised already. Both run in turn; the
ratio is the median of the rounds' ratios, since what else the machine does changes slowly. On the CPU `processor` has
the same ratio of the processor's seconds. Last line: one JSON object.

    python benchmarks/finetune.py [--task nih] [--batch 16] [--rounds 15]
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ace.downstream.images import LabelledBatch, TrainingImages, as_input
from ace.downstream.registry import read_task
from ace.downstream.training import FinetuneState, FinetuneStep
from ace.embed.encoder import Encoder, load_encoder
from ace.engine.optimizer import build_optimizer
from ace.zoo.shipped import find_model
from shards.core.normalisation import Normalisation

ROOT = Path(__file__).parents[1]
MODEL, BATCH = "cxr-small", "noise"
STEPS_PER_EPOCH = 10


def open_encoder() -> Encoder:
    encoder = load_encoder(find_model(MODEL), which="teacher")
    levels = Normalisation.of(0.5, 0.25).per_channel(encoder.in_channels, BATCH)
    return replace(encoder, given={BATCH: levels})


def random_batch(encoder: Encoder, num_images: int, num_labels: int) -> LabelledBatch:
    torch.manual_seed(0)
    shape = (num_images, encoder.in_channels, encoder.input_px, encoder.input_px)
    targets = torch.randint(0, 2, (num_images, num_labels)).float()
    keys = [f"noise-{number}" for number in range(num_images)]
    known = torch.ones_like(targets, dtype=torch.bool)
    return LabelledBatch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8), targets=targets, known=known, keys=keys
    ).to(encoder.device)


def our_step(task: Any, encoder: Encoder, network: nn.Module, batch: LabelledBatch) -> Callable[[], object]:
    state = FinetuneState(
        network=network,
        optimizer=build_optimizer(network, task.params.training),
        scaler=GradScaler(encoder.device.type, enabled=False),
    )
    # What the step asks of the images that it is given a batch of.
    part = SimpleNamespace(index=SimpleNamespace(name=BATCH))
    images = SimpleNamespace(encoder=encoder, part=part, seed=0, steps_per_epoch=STEPS_PER_EPOCH)
    step = FinetuneStep(state, task, cast(TrainingImages, images))
    return lambda: step(batch, is_logged=False, is_stop_wanted=False)


def bare_step(task: Any, network: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], object]:
    params = task.params.training
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True)
    measure = nn.BCEWithLogitsLoss()

    def step() -> Tensor:
        loss = measure(network(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), params.clip_norm)
        optimizer.step()
        return cast(Tensor, loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="nih", help="a task of classification with labels that may occur together")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--rounds", type=int, default=15, help="timed ones, after one to warm up")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    task, encoder = read_task(arguments.task, ROOT), open_encoder()
    network = task.network(encoder).train()
    batch = random_batch(encoder, arguments.batch, len(task.params.labels))  # type: ignore[attr-defined]
    bare = bare_step(task, copy.deepcopy(network), as_input(batch.images, encoder.normalisation(BATCH)), batch.targets)
    steps = {"ours": our_step(task, encoder, network, batch), "bare": bare}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    rounds = []
    for number in range(arguments.rounds + 1):
        seconds = {}
        for kind in list(steps)[:: 1 if number % 2 else -1]:
            started = {name: clock() for name, clock in clocks.items()}
            steps[kind]()
            if encoder.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[kind] = {name: clock() - started[name] for name, clock in clocks.items()}
        rounds.append(seconds)
    rounds = rounds[1:]
    result = {
        "model": MODEL,
        "task": arguments.task,
        "batch": arguments.batch,
        "input_px": encoder.input_px,
        "device": torch.cuda.get_device_name() if encoder.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "timm")},
        **{f"{kind}_s": round(statistics.median(seconds[kind]["wall"] for seconds in rounds), 4) for kind in steps},
    }
    for name in clocks:
        ratios = sorted(seconds["ours"][name] / seconds["bare"][name] for seconds in rounds)
        result[f"ratio_{name}"] = round(statistics.median(ratios), 3)
        result[f"ratio_{name}_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
