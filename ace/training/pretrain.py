"""The stage `pretrain`: from shards to a finished model, resumable at its last checkpoint."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.losses.consistency import update_center
from ace.models.backbone import build_backbone
from ace.models.encoder import default_device
from ace.models.networks import Student, Teacher
from ace.training.checkpoint import save_model
from ace.training.log import RunLog, open_log
from ace.training.monitors import effective_rank, feature_std, mean_entropy
from ace.training.objective import branches_of, compute_loss, count_valid
from ace.training.optimizer import build_optimizer, set_schedule
from ace.training.params import PretrainParams
from ace.training.schedules import cosine, linear_warmup, warmup_cosine
from ace.training.state import TrainState
from shards.atomic import replace_directory
from shards.params import BatchParams, GridParams
from shards.progress import progress_bar
from shards.read import ShardIndex
from shards.scratch import unfinished_work

STATE, ROWS = "state.pt", "metrics.jsonl"
RECORDED_VERSIONS = ("torch", "timm", "numpy", "pillow")
CODE = ("ace/data", "ace/geometry", "ace/losses", "ace/models", "ace/training", "shards")
"""Folders of the modules that training runs."""


def pretrain(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    *,
    shards_root: Path,
    out: Path,
    metrics_dir: Path,
) -> None:
    """Train student and teacher, and write the finished model to `out`.

    The run lives in a scratch folder named by a fingerprint of its parameters, shards, code and libraries: a killed run
    of the same fingerprint goes on at its last checkpoint; one of another starts afresh and touches nothing of it.

    Args:
        params: Section `pretrain`.
        grid: Section `grid`; shards built with another grid are refused.
        batches: Section `batches`; those with a weight above 0 are trained on.
        shards_root: Folder with one shard set for each batch.
        out: Folder of the finished model; appears whole or not at all.
        metrics_dir: Folder that DVCLive writes to.

    Raises:
        ConfigError: shards of another grid, fewer images than a batch, a backbone that does not fit the grid, or the
            same run is under way in another process.
    """
    indexes = {name: ShardIndex.open(shards_root / name) for name, item in batches.items() if item.mix.weight > 0}
    with unfinished_work("pretrain", _fingerprint(params, grid, batches, indexes)) as scratch:
        _train_and_publish(params, grid, batches, indexes, scratch, out, metrics_dir)


def _train_and_publish(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    indexes: Mapping[str, ShardIndex],
    scratch: Path,
    out: Path,
    metrics_dir: Path,
) -> None:
    dataset = CropDataset(
        [(index, batches[name].mix) for name, index in indexes.items()],
        grid.spec,
        objective=params.objective,
        views=params.views,
        crops=params.crops,
        augment=params.augment,
        in_channels=params.backbone.in_channels,
        seed=params.seed,
    )
    torch.set_flush_denormal(True)
    torch.manual_seed(params.seed)
    state = build_state(params, grid, default_device())
    if (scratch / STATE).exists():
        state.load(scratch / STATE)
        print(f"resuming after step {state.step} from {scratch / STATE}", file=sys.stderr)
    sampler = StepSampler(
        dataset, batch_size=params.batch_size, rank=0, world_size=1, first_step=state.step, epochs=params.epochs
    )
    with open_log(scratch / ROWS, metrics_dir) as log:
        log.resume(state.step)
        train(state, sampler, params, grid.t, log, scratch / STATE)
    config = _resolved_config(params, grid, batches, indexes, state.step)
    # Beside the out, not in scratch: a rename needs one file system.
    finished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir(parents=True)
    save_model(finished, state.student, state.teacher, config)
    shutil.copyfile(scratch / ROWS, finished / ROWS)
    replace_directory(finished, out)


def build_state(params: PretrainParams, grid: GridParams, device: torch.device) -> TrainState:
    """Freshly initialised networks and their optimiser.

    Raises:
        ConfigError: the backbone does not fit the grid.
    """
    student = Student(
        build_backbone(params.backbone, grid.spec),
        branches=branches_of(params),
        scales=[(scale.k, scale.l) for scale in grid.scales],
        global_head=params.global_head,
        local_head=params.local_head,
        composer=params.composer,
        decomposer=params.decomposer,
        logits=params.matching_loss.logits,
    ).to(device)
    teacher = Teacher(student).to(device)
    center = torch.zeros(params.global_head.out_dim, device=device)
    return TrainState(student, teacher, build_optimizer(student, params), center, step=0)


def train(
    state: TrainState, sampler: StepSampler, params: PretrainParams, t: int, log: RunLog, checkpoint: Path
) -> None:
    """Run the remaining steps; saves a checkpoint at times and after the last step."""
    device, num_steps = state.center.device, sampler.num_steps
    bar = progress_bar(total=num_steps, initial=state.step, description="pretrain", unit="step")
    state.student.train()
    started = saved = time.monotonic()
    waited, images = 0.0, 0
    batches = iter(build_loader(sampler, num_workers=params.num_workers, is_pinned=device.type == "cuda"))
    with bar:
        while state.step < num_steps:
            asked = time.monotonic()
            batch = next(batches).to(device)
            waited += time.monotonic() - asked
            values = train_step(state, batch, params, t, sampler.steps_per_epoch)
            images += len(batch.keys)
            step = state.step - 1
            if step % params.log_every_steps == 0 or state.step == num_steps:
                elapsed = time.monotonic() - started
                row = {
                    "step": step,
                    "epoch": step // sampler.steps_per_epoch,
                    "images": state.step * params.batch_size,
                    **{name: float(value) for name, value in values.items()},
                    "images_per_s": images / elapsed,
                    "data_wait_share": waited / elapsed,
                }
                log.add(row)
                bar.set_postfix_str(f"loss {row['loss']:.3f}, data wait {row['data_wait_share']:.0%}", refresh=False)
                started, waited, images = time.monotonic(), 0.0, 0
            if time.monotonic() - saved >= params.checkpoint_every_s or state.step == num_steps:
                state.save(checkpoint)
                saved = time.monotonic()
            bar.update()


def train_step(state: TrainState, batch: Any, params: PretrainParams, t: int, steps_per_epoch: int) -> dict[str, Any]:
    """One optimiser step on the student, one average step of the teacher; returns what to log."""
    step, num_steps = state.step, params.epochs * steps_per_epoch
    lr = warmup_cosine(params.lr, params.min_lr, step, num_steps, round(params.warmup_epochs * steps_per_epoch))
    weight_decay = cosine(params.weight_decay, params.weight_decay_end, step, num_steps)
    momentum = cosine(params.momentum, params.momentum_end, step, num_steps)
    temperature = linear_warmup(
        params.global_loss.teacher_temperature_start,
        params.global_loss.teacher_temperature,
        step,
        round(params.global_loss.teacher_temperature_warmup_epochs * steps_per_epoch),
    )
    set_schedule(state.optimizer, lr=lr, weight_decay=weight_decay)
    result = compute_loss(
        state.student,
        state.teacher,
        batch,
        state.center,
        params,
        t=t,
        teacher_temperature=temperature,
        logit_scales=state.student,
        num_valid=count_valid(batch, t),
    )
    state.optimizer.zero_grad(set_to_none=True)
    result.loss.backward()  # type: ignore[no-untyped-call]
    head = state.student.global_head
    if head is not None and step < params.global_loss.frozen_last_layer_epochs * steps_per_epoch:
        head.last_layer.weight.grad = None
    grad_norm = torch.nn.utils.clip_grad_norm_(state.student.parameters(), params.clip_norm)
    state.optimizer.step()
    state.teacher.update(state.student, momentum)
    if result.center_sum is not None:
        state.center = update_center(state.center, *result.center_sum, momentum=params.global_loss.center_momentum)
    state.step += 1
    values: dict[str, Any] = {**result.terms, "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    values["grad_norm"] = grad_norm
    if step % params.log_every_steps == 0:
        values["feature_std"] = feature_std(result.teacher.features)
        values["effective_rank"] = effective_rank(result.teacher.features)
        if result.teacher.fine_logits is not None:
            values["teacher_entropy"] = mean_entropy((result.teacher.fine_logits - state.center) / temperature)
    return values


def _fingerprint(
    params: PretrainParams, grid: GridParams, batches: Mapping[str, BatchParams], indexes: Mapping[str, ShardIndex]
) -> str:
    """Hex digest of everything the result depends on; how often to log and to save is not part of it."""
    root = Path(__file__).parents[2]
    modules = [path for folder in CODE for path in sorted((root / folder).glob("*.py"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in modules))
    values = {
        "pretrain": params.model_dump(mode="json", exclude={"num_workers", "log_every_steps", "checkpoint_every_s"}),
        "grid": grid.model_dump(mode="json"),
        "mix": {name: batches[name].mix.model_dump(mode="json") for name in indexes},
        "indexes": {name: index.fingerprint for name, index in indexes.items()},
        "code": code.hexdigest(),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _resolved_config(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    indexes: Mapping[str, ShardIndex],
    steps: int,
) -> dict[str, Any]:
    shards = [
        {
            "batch": name,
            "weight": batches[name].mix.weight,
            "fingerprint": index.fingerprint,
            "num_images": len(index.select("train")),
            "num_patients": len(set(index.rows["patient"][index.select("train")].tolist())),
            "shards": [{"name": s["name"], "sha256": s["sha256"]} for s in index.shards if s["split"] == "train"],
        }
        for name, index in indexes.items()
    ]
    return {
        "params": {
            "pretrain": params.model_dump(mode="json", by_alias=True),
            "grid": grid.spec.to_json(),
            "batches": {name: {"mix": batches[name].mix.model_dump(mode="json")} for name in batches},
        },
        "shards": shards,
        "steps": steps,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"python": python_version(), **{name: version(name) for name in RECORDED_VERSIONS}}
