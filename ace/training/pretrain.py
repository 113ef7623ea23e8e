"""The stage `pretrain`: from shards to a finished model, resumable at its last checkpoint."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ace.data.loader import CropDataset, StepSampler
from ace.models.backbone import build_backbone
from ace.models.networks import Student, Teacher
from ace.training.checkpoint import save_model
from ace.training.checkpoints import CheckpointFolder
from ace.training.log import open_log
from ace.training.loop import TrainingLoop
from ace.training.monitors import CollapseWatch
from ace.training.objective import branches_of
from ace.training.optimizer import build_optimizer
from ace.training.params import PretrainParams
from ace.training.probe import plan_probe
from ace.training.ranks import Ranks, open_ranks
from ace.training.run import RunFolder, RunIdentity, open_run, recorded_versions
from ace.training.start import start_files, take_first_weights
from ace.training.state import TrainState
from ace.training.stop import StopRequest, stop_requests
from shards.atomic import replace_directory, write_text
from shards.errors import ConfigError
from shards.params import BatchParams, GridParams
from shards.read import ShardIndex

CHECKPOINTS, ROWS, START = "checkpoints", "metrics.jsonl", "start.txt"


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes what it ends with.

    Attributes:
        run_dir: Folder for checkpoints and log, kept; None for one in scratch, removed at the end.
        accepts_changed_code: Go on in `run_dir` although code or libraries changed.
        time_limit_s: Save and end after so many seconds; None for no limit.
        loggers: Names of more loggers than those that every run has (ace.training.loggers).
    """

    run_dir: Path | None = None
    accepts_changed_code: bool = False
    time_limit_s: float | None = None
    loggers: Sequence[str] = ()


def pretrain(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    *,
    shards_root: Path,
    out: Path,
    metrics_dir: Path,
    options: RunOptions = RunOptions(),
) -> None:
    """Train student and teacher, and write the finished model to `out`; started by torchrun, as one of its processes.

    A run of the same parameters, shards, code and libraries goes on at its last checkpoint; one of others starts afresh
    and touches nothing of it, or, in a run directory that was named, is refused.

    Args:
        params: Section `pretrain`.
        grid: Section `grid`; shards built with another grid are refused.
        batches: Section `batches`; those with a weight above 0 are trained on.
        shards_root: Folder with one shard set for each batch.
        out: Folder of the finished model; appears whole or not at all.
        metrics_dir: Folder that DVCLive writes to.
        options: How to carry it out.

    Raises:
        ConfigError: shards of another grid, fewer images than a batch, a batch that does not divide, a backbone that
            does not fit the grid, or a run directory that is in use or was begun with other inputs.
        NonfiniteError: loss or gradient was not finite.
        StoppedError: asked to end by a signal or the time limit; the state is saved.
    """
    indexes = {name: ShardIndex.open(shards_root / name) for name, item in batches.items() if item.mix.weight > 0}
    identity = RunIdentity.of(params, grid, batches, indexes)
    with ExitStack() as stack:
        request = stack.enter_context(stop_requests(options.time_limit_s))
        ranks = stack.enter_context(open_ranks())
        run = ranks.from_first(
            lambda: stack.enter_context(
                open_run(identity, options.run_dir, accepts_changed_code=options.accepts_changed_code)
            )
        )
        state = _train(params, grid, batches, indexes, run, identity.fingerprint, ranks, request, metrics_dir, options)
        if ranks.is_first:
            config = _resolved_config(params, grid, batches, indexes, state.step, ranks)
            _publish(state, config, run.path, out)


def build_state(params: PretrainParams, grid: GridParams, device: torch.device) -> TrainState:
    """Networks with random weights, and their optimiser.

    Raises:
        ConfigError: the backbone does not fit the grid, or cannot compute its activations again.
    """
    backbone = build_backbone(params.backbone, grid.spec)
    student = Student(
        backbone,
        branches=branches_of(params),
        scales=[(scale.k, scale.l) for scale in grid.scales],
        global_head=params.global_head,
        local_head=params.local_head,
        composer=params.composer,
        decomposer=params.decomposer,
        logits=params.matching_loss.logits,
    ).to(device)
    teacher = Teacher(student).to(device)
    if params.checkpoint_activations:
        student.backbone.checkpoint_activations()
    if params.compile:
        # In place: the names of the weights stay.
        student.backbone.compile()
        teacher.backbone.compile()
    return TrainState(
        student,
        teacher,
        build_optimizer(student, params),
        torch.amp.GradScaler(device.type, enabled=params.precision == "fp16"),
        torch.zeros(params.global_head.out_dim, device=device),
        step=0,
    )


def _train(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    indexes: Mapping[str, ShardIndex],
    run: RunFolder,
    fingerprint: str,
    ranks: Ranks,
    request: StopRequest,
    metrics_dir: Path,
    options: RunOptions,
) -> TrainState:
    """The state after the last step."""
    members = [(index, batches[name].mix) for name, index in indexes.items()]
    probe_plan = plan_probe(members, params.probe, seed=params.seed) if params.probe.every_epochs else None
    dataset = CropDataset(
        members,
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
    state = build_state(params, grid, ranks.device)
    checkpoints = CheckpointFolder(run.path / CHECKPOINTS, num_kept=params.keep_checkpoints)
    saved = checkpoints.load_newest(run.fingerprints)
    if saved is None:
        account = take_first_weights(state, params)
        if account is not None and ranks.is_first:
            print(account, file=sys.stderr)
            write_text(run.path / START, account + "\n")
    else:
        state.load_dict(saved)
        if ranks.is_first:
            print(f"resuming after step {state.step} from {checkpoints.path(state.step)}", file=sys.stderr)
    sampler = StepSampler(
        dataset,
        batch_size=_samples_per_rank(params, ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        first_step=state.step,
        epochs=params.epochs,
    )
    watch = CollapseWatch(params.collapse, out_dim=params.global_head.out_dim if state.student.global_head else None)
    with ExitStack() as stack:
        log = None
        if ranks.is_first:
            log = stack.enter_context(open_log(run.path / ROWS, metrics_dir, loggers=options.loggers))
            log.resume(state.step)
            watch.replay(log.rows())
        TrainingLoop(
            state=state,
            learner=ranks.averaging(state.student),
            sampler=sampler,
            params=params,
            t=grid.t,
            ranks=ranks,
            log=log,
            probe_plan=probe_plan if ranks.is_first else None,
            watch=watch,
            checkpoints=checkpoints,
            run=run,
            fingerprint=fingerprint,
        ).finish(request)
    return state


def _samples_per_rank(params: PretrainParams, world_size: int) -> int:
    """Each process's part of the batch; its micro-batches are equal.

    Raises:
        ConfigError: the numbers do not divide.
    """
    num_parts = world_size * params.num_micro_batches
    if params.batch_size % num_parts:
        raise ConfigError(
            f"pretrain.batch_size {params.batch_size} does not divide into {world_size} process(es) × "
            f"num_micro_batches {params.num_micro_batches} = {num_parts} equal parts; change one of the three"
        )
    return params.batch_size // world_size


def _publish(state: TrainState, config: Mapping[str, Any], run: Path, out: Path) -> None:
    # Beside the out, not in scratch: a rename needs one file system.
    finished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir(parents=True)
    save_model(finished, state.student, state.teacher, config)
    for name in (ROWS, START):
        if (run / name).exists():
            shutil.copyfile(run / name, finished / name)
    replace_directory(finished, out)


def _resolved_config(
    params: PretrainParams,
    grid: GridParams,
    batches: Mapping[str, BatchParams],
    indexes: Mapping[str, ShardIndex],
    steps: int,
    ranks: Ranks,
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
        "start_from": {} if params.start_from is None else start_files(Path(params.start_from)),
        "steps": steps,
        "num_processes": ranks.world_size,
        "device": ranks.device.type,
        "versions": recorded_versions(),
    }
