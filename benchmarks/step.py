"""Time and memory of a full training step against the backbone alone and against a straightforward trainer.

One process, the three kinds of step in turn, their order turning by one every round:

- `full`: ours, as training runs it between two logged steps;
- `backbone`: the backbone alone with the same treatment: student forward and backward on both crops, teacher forward
  on both, AdamW, clipping, and the average of its parameters; the ratio to it is the price of targets, heads, losses;
- `straightforward`: `reference/straightforward.py`, the same method written plainly; the run begins by holding its loss
  to ours on the same weights.

`--removal` times the step with the removal term on, on crops of which some have rectangles erased: the teacher sees the
whole crops and the student the erased ones, both normalised in the step. The plain trainer knows no such term, so that
run compares with the backbone alone. Without the flag the term is off, whatever the configuration says.

Ratios are medians of the rounds' ratios, since what else the machine does changes slowly; times are medians. On the CPU
`processor_time` has the same ratios of the processor's seconds, which other processes disturb less. Peak memory
is the high-water mark of a process that builds one kind and runs two steps of it: resident memory on the CPU (libraries
included), the allocator's on an accelerator. Last line: one JSON object.

    python benchmarks/step.py                                                  # the demo's configuration
    python benchmarks/step.py --backbone vit_base_patch32_224 --batch 2        # the paper's sizes
    python benchmarks/step.py --backbone swin_base_patch4_window7_224 --batch 2
    python benchmarks/step.py --backbone vit_base_patch32_224 --batch 2 --removal
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference.straightforward import Straightforward

from ace.config import Config, resolve
from ace.data.augmentation import Augmentation
from ace.data.batches import CropPairItem, PairBatch, collate
from ace.data.erase import draw_erasure, shown_share
from ace.engine.ranks import Ranks
from ace.models.backbone import build_backbone
from ace.models.device import default_device
from ace.pretrain.objective import Objective, StepContext
from ace.pretrain.params import PretrainParams
from ace.pretrain.pretrain import build_state
from ace.pretrain.state import TrainState
from ace.pretrain.step import PretrainStep
from shards.core.grid import draw_crop_pair
from shards.core.normalisation import Normalisation
from shards.core.params import GridParams
from shards.runtime.progress import progress

ROOT = Path(__file__).parents[1]
KINDS = ("full", "backbone", "straightforward")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR, WEIGHT_DECAY, MOMENTUM = 1e-4, 0.04, 0.996
REMOVAL_WEIGHT, ERASE_PROBABILITY = 0.1, 0.5  # with --removal, where the configuration has 0
STEPS_PER_EPOCH = 10
LOSS_TOLERANCE = 1e-4

Step = Callable[[], object]


def paper_values(backbone: str, crop_px: int, t: int, hidden_dim: int) -> dict[str, dict[str, Any]]:
    """Return what the paper's sizes change in the demo's configuration (docs/method.md §3–4)."""
    grid = {"n": 2 * t + 4, "cell_px": crop_px // t, "t": t, "scales": [{"k": 2, "l": 2, "weight": 1.0}]}
    pretrain = {
        "backbone": {
            "name": backbone,
            "model_args": {},
            "in_channels": 3,
            "token_activation": "identity",
            "drop_path": 0.1,
            "weights": None,
        },
        "global_head": {"hidden_dim": 2048, "bottleneck_dim": 256, "out_dim": 65536},
        "local_head": {"form": "mlp", "hidden_dim": hidden_dim},
        "composer": "mlp",
        "decomposer": "mlp",
        "loss_weights": {"global": 0.1, "decomposition": 0.5, "composition": 0.5, "removal": 0},
        "matching_loss": {
            "alpha_decomposition": 0.99,
            "alpha_composition": 0.9,
            "logits": {"scale": 1 / 0.07, "bias": 0.0, "learnable": False},
        },
    }
    return {"grid": grid, "pretrain": pretrain}


def benchmark_config(arguments: argparse.Namespace) -> Config:
    """The configuration asked for, in the state of most of a run: nothing frozen, logits fixed, no step logged."""
    values = resolve(arguments.config, ROOT / "configs")
    if arguments.backbone is not None:
        paper = paper_values(arguments.backbone, arguments.crop_px, arguments.t, arguments.hidden_dim)
        values = {**values, **{section: {**values[section], **changes} for section, changes in paper.items()}}
    pretrain = dict(values["pretrain"])
    pretrain["batch_size"] = arguments.batch or pretrain["batch_size"]
    pretrain["global_loss"] = {**pretrain["global_loss"], "frozen_last_layer_epochs": 0}
    matching = pretrain["matching_loss"]
    pretrain["matching_loss"] = {**matching, "logits": {**matching["logits"], "learnable": False}}
    removal = (pretrain["loss_weights"]["removal"] or REMOVAL_WEIGHT) if arguments.removal else 0
    pretrain["loss_weights"] = {**pretrain["loss_weights"], "removal": removal}
    augment = pretrain["augment"]
    if arguments.removal and augment["erase"]["probability"] == 0:
        pretrain["augment"] = {**augment, "erase": {**augment["erase"], "probability": ERASE_PROBABILITY}}
    if not arguments.removal:
        erase = pretrain["augment"]["erase"]
        pretrain["augment"] = {**pretrain["augment"], "erase": {**erase, "probability": 0.0}}
    pretrain |= {"precision": arguments.precision, "compile": arguments.compile}
    return Config.from_params({**values, "pretrain": pretrain}, arguments.config)


def random_batch(config: Config, rng: np.random.Generator) -> PairBatch:
    """Build a batch of noise; with removal, at least the first crop has rectangles erased."""
    erase = config.pretrain.augment.erase
    is_erased = config.pretrain.loss_weights.removal > 0
    spec, channels = config.grid.spec, config.pretrain.backbone.in_channels
    shape = (spec.crop_px, spec.crop_px) if channels == 1 else (spec.crop_px, spec.crop_px, 3)
    items = []
    for number in range(config.pretrain.batch_size):
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        coarse, fine = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
        drawn = [draw_erasure(erase, rng, size_px=spec.crop_px) if is_erased else None for _ in range(2)]
        if is_erased and number == 0 and drawn[0] is None:
            drawn[0] = draw_erasure(erase.model_copy(update={"probability": 1.0}), rng, size_px=spec.crop_px)
        shown = [shown_share(erasure, size_px=spec.crop_px, t=spec.t) for erasure in drawn]
        levels = Normalisation.of(0.5, 0.25).per_channel(channels, "random")
        left = [Augmentation(erased=erasure) for erasure in drawn]
        items.append(
            CropPairItem(
                coarse=coarse,
                fine=fine,
                pair=pair,
                normalisation=levels,
                key=f"random-{number}",
                coarse_shown=shown[0],
                fine_shown=shown[1],
                coarse_augmentation=left[0],
                fine_augmentation=left[1],
            )
        )
    return collate(items).augmented(config.pretrain.augment)


def full_step(state: TrainState, device: torch.device, params: PretrainParams, t: int) -> PretrainStep:
    """The step of training, which calls it with `is_logged=False` between two logged ones."""
    return PretrainStep(
        state=state,
        learner=state.student,
        params=params,
        objective=Objective.of(params, t),
        steps_per_epoch=STEPS_PER_EPOCH,
        ranks=Ranks(0, 1, device),
    )


class BackboneAlone:
    def __init__(self, params: PretrainParams, grid: GridParams, device: torch.device) -> None:
        self.student = build_backbone(params.backbone, grid.spec).to(device).train()
        self.teacher = build_backbone(params.backbone, grid.spec).to(device).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        self.clip_norm = params.clip_norm

    def step(self, batch: PairBatch, precision: torch.dtype) -> None:
        crops = torch.cat(batch.whole())
        with torch.autocast(crops.device.type, dtype=precision, enabled=precision != torch.float32):
            loss = self.student(crops).float().square().mean()
            with torch.no_grad():
                self.teacher(crops)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - MOMENTUM)


def build_step(kind: str, config: Config, batch: PairBatch, arguments: argparse.Namespace) -> Step:
    """One kind of step with its networks, ready to be called."""
    params, grid, device = config.pretrain, config.grid, batch.coarse.device
    precision = PRECISIONS[arguments.precision]
    torch.manual_seed(0)
    if kind == "backbone":
        alone = BackboneAlone(params, grid, device)
        if arguments.compile:
            alone.student.compile()
            alone.teacher.compile()
        return lambda: alone.step(batch, precision)
    state = build_state(params, grid, device)
    state.student.train()
    if kind == "full":
        full = full_step(state, device, params, grid.t)
        return lambda: full(batch, is_logged=False)
    plain = Straightforward(state.student, params, t=grid.t, scale=(batch.k, batch.l))
    if arguments.compile:
        plain.student.backbone.compile()
        plain.teacher.backbone.compile()
    rates = {"lr": LR, "weight_decay": WEIGHT_DECAY, "momentum": MOMENTUM}
    return lambda: plain.step(batch, **rates, precision=precision)


def check_equal_loss(config: Config, batch: PairBatch) -> None:
    """Both trainers' losses on the same weights, without stochastic depth.

    Raises:
        SystemExit: they differ, so the comparison would be of unequal work.
    """
    params, t = config.pretrain, config.grid.t
    state = build_state(params, config.grid, batch.coarse.device)
    plain = Straightforward(state.student, params, t=t, scale=(batch.k, batch.l))
    state.student.eval()
    plain.student.eval()
    with torch.no_grad():
        objective = Objective.of(params, t)
        taught = objective.teach(state.teacher, batch)
        context = StepContext(
            center=state.center,
            teacher_temperature=params.global_loss.teacher_temperature,
            scales=state.student,
            totals=objective.totals(batch, [taught], 1),
        )
        ours = objective.loss(state.student, batch, taught, context).loss.item()
        theirs = plain.loss(batch)[0].item()
    if abs(ours - theirs) > LOSS_TOLERANCE * abs(ours):
        raise SystemExit(f"the straightforward trainer's loss is {theirs}, ours {ours}: the work is not the same")


def timed(function: Step, device: torch.device) -> dict[str, float]:
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    started = {name: clock() for name, clock in clocks.items()}
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {name: clock() - started[name] for name, clock in clocks.items()}


def kinds_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    return KINDS[:2] if arguments.removal else KINDS


def ratios(rounds: list[dict[str, dict[str, float]]], clock: str) -> dict[str, Any]:
    """Full step over each other kind: the median of the rounds' ratios, and their range."""
    result: dict[str, Any] = {}
    for kind in [kind for kind in rounds[0] if kind != "full"]:
        values = sorted(seconds["full"][clock] / seconds[kind][clock] for seconds in rounds)
        result[f"ratio_to_{kind}"] = round(statistics.median(values), 3)
        result[f"ratio_to_{kind}_range"] = [round(values[0], 3), round(values[-1], 3)]
    return result


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured_peaks_gib(kinds: tuple[str, ...]) -> dict[str, float]:
    """Each kind's peak in a process of its own, started while this one is still small: Linux hands its mark down."""
    peaks = {}
    for kind in progress(kinds, total=len(kinds), description="memory", unit="kind"):
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", kind]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[kind] = round(json.loads(printed.splitlines()[-1])["peak_bytes"] / 2**30, 3)
    return peaks


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a named configuration (configs/)")
    parser.add_argument("--backbone", help="timm's name: takes the paper's sizes in place of the configuration's")
    parser.add_argument("--crop-px", type=int, default=448, help="with --backbone: side of a crop")
    parser.add_argument("--t", type=int, default=14, help="with --backbone: tokens per crop side")
    parser.add_argument("--hidden-dim", type=int, default=2048, help="with --backbone: of the local MLPs")
    parser.add_argument("--batch", type=int, help="images per step; the configuration's if not given")
    parser.add_argument("--num-steps", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--compile", action="store_true", help="torch.compile the backbones of all three kinds")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="autocast of all three kinds")
    parser.add_argument("--removal", action="store_true", help="the step with the removal term, on erased crops")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    config = benchmark_config(arguments)
    device = default_device()
    torch.set_flush_denormal(True)
    if arguments.memory_of is not None:
        batch = random_batch(config, np.random.default_rng(0)).to(device)
        step = build_step(arguments.memory_of, config, batch, arguments)
        step()
        step()
        print(json.dumps({"peak_bytes": peak_bytes(device)}))
        return
    kinds = kinds_of(arguments)
    peaks = measured_peaks_gib(kinds)
    batch = random_batch(config, np.random.default_rng(0)).to(device)
    if "straightforward" in kinds:
        check_equal_loss(config, batch)
    steps = {kind: build_step(kind, config, batch, arguments) for kind in kinds}
    rounds: list[dict[str, dict[str, float]]] = []
    num_rounds = arguments.num_steps + 1
    for number in progress(range(num_rounds), total=num_rounds, description="step", unit="round"):
        first = number % len(kinds)
        rounds.append({kind: timed(steps[kind], device) for kind in kinds[first:] + kinds[:first]})
    rounds = rounds[1:]
    medians = {kind: round(statistics.median(seconds[kind]["wall"] for seconds in rounds), 4) for kind in kinds}
    result = {
        "config": arguments.config if arguments.backbone is None else "paper",
        "backbone": config.pretrain.backbone.name,
        "batch": config.pretrain.batch_size,
        "crop_px": config.grid.spec.crop_px,
        "hidden_dim": config.pretrain.local_head.hidden_dim,
        "precision": arguments.precision,
        "is_compiled": arguments.compile,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "timm")},
        "num_steps": arguments.num_steps,
        "is_removal": arguments.removal,
        "step_s": medians["full"],
        **{f"{kind}_s": medians[kind] for kind in kinds if kind != "full"},
        **ratios(rounds, "wall"),
        **({"processor_time": ratios(rounds, "processor")} if device.type == "cpu" else {}),
        "peak_gib": peaks,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
