"""The stage `pretrain`: from shards to a finished model, resumable at its last checkpoint."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ace.data.batches import PairBatch, ViewBatch
from ace.data.division import check_division
from ace.data.loader import CropDataset, StepSampler, build_loader
from ace.engine.checkpoints import CheckpointFolder
from ace.engine.hardware import hardware
from ace.engine.loop import CHECKPOINTS, ROWS, Journal, finish_training, load_newest
from ace.engine.optimizer import build_optimizer
from ace.engine.ranks import Ranks, open_ranks
from ace.engine.run import AS_USUAL, RunFolder, RunOptions, open_run, recorded_commit, recorded_versions
from ace.engine.stop import StopRequest
from ace.engine.training import Hooks, Training
from ace.models.backbone import Backbone, build_backbone
from ace.models.folder import FORMAT_VERSION, Which
from ace.models.model_config import (
    BestStep,
    MixedBatch,
    PretrainSection,
    SeenBatch,
    SeenTar,
    TrainedConfig,
    TrainedParams,
)
from ace.models.networks import Student, Teacher
from ace.models.precision import accelerator_settings, placed
from ace.pretrain.identity import identity_of
from ace.pretrain.model_folder import BestTeacher, save_model
from ace.pretrain.monitors import CollapseWatch
from ace.pretrain.objective import Objective, branches_of
from ace.pretrain.params import PretrainParams
from ace.pretrain.probe import ProbePlan, plan_probe, run_probe
from ace.pretrain.start import check_start, take_first_weights
from ace.pretrain.state import TrainState
from ace.pretrain.step import PretrainStep
from ace.pretrain.whitening import fit_whitening
from shards.core.errors import ConfigError
from shards.core.modality import Pictures, check_mixture
from shards.core.params import GridParams, MixParams
from shards.reading.lineage import names_without_patients, warn_of_unknown_patients, write_lineage
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import atomic_directory, write_text
from shards.store.location import Location, location_of

START = "start.txt"
SCORE = "probe_knn_auroc"
"""By which the best checkpoint is chosen: the loss says little about the encoder."""


def pretrain(
    params: PretrainParams,
    grid: GridParams,
    mix: Mapping[str, MixParams],
    *,
    shards_root: Location,
    out: Path,
    metrics_dir: Path,
    request: StopRequest,
    options: RunOptions = AS_USUAL,
    project: Path = Path(),
) -> None:
    """Train student and teacher, and write the finished model to `out`; started by torchrun, as one of its processes.

    A run of the same parameters, shards, code and libraries goes on at its last checkpoint; one of others starts afresh
    and touches nothing of it, or, in a run directory that was named, is refused.

    Args:
        params: Section `pretrain`.
        grid: Section `grid`; shards built with another grid are refused.
        mix: Section `mix`; the batches with a weight above 0 are trained on.
        shards_root: Folder or URL with one shard set for each batch.
        out: Folder of the finished model; appears whole or not at all.
        metrics_dir: Folder that DVCLive writes to.
        request: Ends the run early, with its state saved.
        options: How to carry it out.
        project: The folder of params.yaml, where it is said which images of a batch are excluded.

    Raises:
        SourceError: images of a batch are excluded, and the list that says which is missing or another.
        ConfigError: shards of another grid, batches of several kinds of pictures, fewer images than a batch, a batch
            that does not divide, a backbone that does not fit the grid or the division, or a run directory that is in
            use or was begun with other inputs.
        NonfiniteError: loss or gradient was not finite.
        DivergedError: processes had different networks.
        StoppedError: asked to end by a signal or the time limit; the state is saved.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(open_ranks(options.device or params.device))
        stack.enter_context(accelerator_settings(params.precision, ranks.device, has_one_shape=True))
        if ranks.is_first:
            print(_outset(ranks, params.precision), file=sys.stderr)
        indexes = ranks.together(lambda: _open_indexes(mix, shards_root, project))
        pictures = {
            name: Pictures(kind=index.dataset.kind, channels=index.channels, modality=index.dataset.modality)
            for name, index in indexes.items()
        }
        ranks.together(lambda: check_mixture(pictures, is_accepted=params.accept_mixed_images))
        if ranks.is_first:
            unknown = names_without_patients({name: index.dataset.to_json() for name, index in indexes.items()})
            warn_of_unknown_patients(unknown, "what is measured of this model may be too good")
        ranks.together(lambda: check_start(params, is_required=False))
        identity = ranks.together(lambda: identity_of(params, grid, mix, indexes)).agreed(ranks)
        # Now: model and code may be others by the end of a long run.
        origin = {
            "code": identity.values["code"],
            "commit": recorded_commit() if ranks.is_first else None,
            "start_from": identity.values["start"],
        }
        run = ranks.from_first(
            lambda: stack.enter_context(
                open_run(identity, options.run_dir, accepts_changed_code=options.accepts_changed_code)
            )
        )
        members = [(index, mix[name]) for name, index in indexes.items()]
        saved = load_newest(run, params, ranks)
        state, sampler, hooks = ranks.together(lambda: _begin(params, grid, members, saved, run, ranks))
        training = _training(params, grid, state, sampler, hooks, ranks)
        finish_training(training, params, identity, run, ranks, Journal(metrics_dir, options.loggers), request)
        if ranks.is_first:
            best = _best_teacher(CheckpointFolder(run.path / CHECKPOINTS, num_kept=params.keep_checkpoints))
            whitening = _whitening(state, best, members, params, grid, ranks.device, request)
            config = _resolved_config(params, grid, mix, indexes, state.step, best, ranks, origin)
            start = None if params.start_from is None else Path(params.start_from)
            _publish(state, config, indexes, best, whitening, run.path, out, start)


def build_state(params: PretrainParams, grid: GridParams, device: torch.device) -> TrainState:
    """Networks with random weights, and their optimiser.

    Raises:
        ConfigError: the backbone does not fit the grid, or cannot compute its activations again.
    """
    backbone = build_backbone(params.backbone, grid.spec)
    network = Student(
        backbone,
        branches=branches_of(params),
        scales=[(scale.k, scale.l) for scale in grid.scales],
        global_head=params.global_head,
        local_head=params.local_head,
        composer=params.composer,
        decomposer=params.decomposer,
        logits=params.matching_loss.logits,
    )
    student = placed(network, params.precision, device)
    teacher = placed(Teacher(student), params.precision, device)
    if params.checkpoint_activations:
        student.backbone.checkpoint_activations()
    if params.compile:
        # In place: the names of the weights stay.
        student.backbone.compile()
        teacher.backbone.compile()
    return TrainState(
        student=student,
        teacher=teacher,
        optimizer=build_optimizer(student, params),
        scaler=torch.amp.GradScaler(device.type, enabled=params.precision == "fp16"),
        center=torch.zeros(params.global_head.out_dim, device=device),
        step=0,
    )


@dataclass(frozen=True, kw_only=True)
class PretrainHooks(Hooks):
    """The probe and the watch for collapse.

    Attributes:
        state: Whose teacher is probed.
        params: Section `pretrain`.
        plan: What the probe looks at; None on all ranks but the first, and without a probe.
        watch: Warns of collapse.
        steps_per_epoch: Optimiser steps.
        num_steps: Of the whole run.
        device: Where the networks lie.
    """

    state: TrainState
    params: PretrainParams
    plan: ProbePlan | None
    watch: CollapseWatch
    steps_per_epoch: int
    num_steps: int
    device: torch.device

    score = SCORE

    def is_measured_after(self, num_steps: int) -> bool:
        """Tell whether the probe looks at the teacher: every so many epochs, and at the end."""
        every = self.params.probe.every_epochs * self.steps_per_epoch
        return every > 0 and (num_steps % every == 0 or num_steps == self.num_steps)

    def measure(self) -> dict[str, float]:
        """Return the probe's figures."""
        if self.plan is None:
            return {}
        return run_probe(
            self.state.teacher.backbone,
            self.plan,
            self.params.probe,
            in_channels=self.params.backbone.in_channels,
            precision=self.params.precision,
            device=self.device,
        )

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """Warn of collapse."""
        return self.watch.check(row)


def _training(
    params: PretrainParams,
    grid: GridParams,
    state: TrainState,
    sampler: StepSampler,
    hooks: PretrainHooks,
    ranks: Ranks,
) -> Training[PairBatch | ViewBatch]:
    """Describe the training to the engine."""
    learner = ranks.averaging(state.student)
    learner.train()
    objective = Objective.of(params, grid.t)
    return Training(
        state=state,
        step=PretrainStep(
            state=state,
            learner=learner,
            params=params,
            objective=objective,
            steps_per_epoch=sampler.steps_per_epoch,
            ranks=ranks,
        ),
        batches=lambda while_waiting: iter(
            build_loader(
                sampler,
                num_workers=params.num_workers,
                is_pinned=ranks.device.type == "cuda",
                while_waiting=while_waiting,
            )
        ),
        augment=lambda batch: batch.augmented(params.augment),
        num_steps=sampler.num_steps,
        steps_per_epoch=sampler.steps_per_epoch,
        hooks=hooks,
    )


def _begin(
    params: PretrainParams,
    grid: GridParams,
    members: Sequence[tuple[ShardIndex, MixParams]],
    saved: dict[str, Any] | None,
    run: RunFolder,
    ranks: Ranks,
) -> tuple[TrainState, StepSampler, PretrainHooks]:
    """Return the state that training goes on from, this process's samples of later steps, and what watches them."""
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
    num_samples = samples_per_rank(params, ranks.world_size)
    warnings = check_division(
        dataset,
        batch_size=num_samples,
        world_size=ranks.world_size,
        num_local_ranks=ranks.num_local,
        num_workers=params.num_workers,
        epochs=params.epochs,
    )
    if ranks.is_first:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    torch.set_flush_denormal(True)
    torch.manual_seed(params.seed)
    state = build_state(params, grid, ranks.device)
    check_statistics(state.student.backbone, params, ranks.world_size)
    if saved is None:
        account = take_first_weights(state, params)
        if account is not None and ranks.is_first:
            print(account, file=sys.stderr)
            write_text(run.path / START, account + "\n")
    else:
        state.load_dict(saved)
    sampler = StepSampler(
        dataset,
        batch_size=num_samples,
        rank=ranks.rank,
        world_size=ranks.world_size,
        first_step=state.step,
        epochs=params.epochs,
    )
    is_probed = ranks.is_first and params.probe.every_epochs > 0
    hooks = PretrainHooks(
        state=state,
        params=params,
        plan=plan_probe(members, params.probe, seed=params.seed) if is_probed else None,
        watch=CollapseWatch(params.collapse, out_dim=params.global_head.out_dim if state.student.global_head else None),
        steps_per_epoch=sampler.steps_per_epoch,
        num_steps=sampler.num_steps,
        device=ranks.device,
    )
    return state, sampler, hooks


def _outset(ranks: Ranks, precision: str) -> str:
    """Write the first line of a run: what it computes on, which decides between hours and weeks."""
    if ranks.device.type == "cuda":
        where = f"{ranks.device} ({torch.cuda.get_device_name(ranks.device)})"
    else:
        seen = (
            f"{torch.cuda.device_count()} accelerator(s) seen" if torch.cuda.is_available() else "no accelerator seen"
        )
        where = f"{ranks.device} ({seen} by torch {torch.__version__})"
    return f"pretrain: on {where}, in {precision}, by {ranks.world_size} process(es)"


def _open_indexes(mix: Mapping[str, MixParams], shards_root: Location, project: Path) -> dict[str, ShardIndex]:
    names = [name for name, item in mix.items() if item.weight > 0]
    return {name: ShardIndex.open(location_of(shards_root, name)).without_excluded(project) for name in names}


def samples_per_rank(params: PretrainParams, world_size: int) -> int:
    """Return each process's part of the batch, which consists of equal micro-batches.

    Raises:
        ConfigError: the numbers do not divide.
    """
    num_parts = world_size * params.num_micro_batches
    if params.batch_size % num_parts:
        raise ConfigError(
            f"pretrain.batch_size {params.batch_size} does not divide into {world_size} process(es) × "
            f"num_micro_batches {params.num_micro_batches} = {num_parts} equal parts; change one of the three"
        )
    num_samples, erase = params.batch_size // num_parts, params.augment.erase
    if erase.probability > 0 and erase.fills.tissue > 0 and num_samples % 2:
        raise ConfigError(
            f"pretrain.batch_size {params.batch_size} gives parts of {num_samples} image(s) for {world_size} "
            f"process(es) × num_micro_batches {params.num_micro_batches}, and augment.erase.fills.tissue needs an even "
            "number, since images exchange tissue in pairs; change one of the three, or set fills.tissue to 0"
        )
    return params.batch_size // world_size


def check_statistics(backbone: nn.Module, params: PretrainParams, world_size: int) -> None:
    """Check that no layer takes statistics of a part of the batch, or of the same part twice.

    Raises:
        ConfigError: the backbone has such layers, as BatchNorm, and a step of it is taken in parts.
    """
    names = [
        name
        for name, layer in backbone.named_modules()
        if isinstance(layer, _BatchNorm) or "running_var" in dict(layer.named_buffers(recurse=False))
    ]
    if names and (world_size > 1 or params.num_micro_batches > 1 or params.checkpoint_activations):
        raise ConfigError(
            f"pretrain.backbone {params.backbone.name} has {len(names)} layers with statistics of the batch, as "
            f"{names[0]}, which must see it whole and once; found {world_size} process(es), num_micro_batches "
            f"{params.num_micro_batches}, checkpoint_activations {str(params.checkpoint_activations).lower()}. Train "
            "it in one process with 1 and false, or choose a backbone without BatchNorm, as a ConvNeXt, Swin or ViT"
        )


def _best_teacher(checkpoints: CheckpointFolder) -> BestTeacher | None:
    """Return the teacher of the checkpoint that the probe scored highest; None where the probe was off."""
    best = checkpoints.find_best()
    if best is None or best.score is None:
        return None
    return BestTeacher(step=best.step, score=best.score, metric=SCORE, state=checkpoints.load(best)["teacher"])


def _whitening(
    state: TrainState,
    best: BestTeacher | None,
    members: Sequence[tuple[ShardIndex, MixParams]],
    params: PretrainParams,
    grid: GridParams,
    device: torch.device,
    request: StopRequest,
) -> dict[Which, Tensor]:
    """Return the map of each finished network's tokens; empty where the parameters want none."""
    if params.whitening is None:
        return {}
    backbones: dict[Which, Backbone] = {"teacher": state.teacher.backbone, "student": state.student.backbone}
    if best is not None:
        teacher = Teacher(state.student).to(device)
        teacher.load_state_dict(best.state)
        backbones["best"] = teacher.backbone
    for backbone in backbones.values():
        backbone.eval()
    return fit_whitening(backbones, members, grid.spec, params, device, request)


def _publish(
    state: TrainState,
    config: TrainedConfig,
    indexes: Mapping[str, ShardIndex],
    best: BestTeacher | None,
    whitening: Mapping[Which, Tensor],
    run: Path,
    out: Path,
    start: Path | None,
) -> None:
    tensors = [*state.student.state_dict().values(), *state.teacher.state_dict().values()]
    with atomic_directory(out, sum(tensor.nbytes for tensor in tensors)) as finished:
        save_model(finished, state.student, state.teacher, config, best, whitening)
        write_lineage(finished, indexes, start)
        for name in (ROWS, START):
            if (run / name).exists():
                shutil.copyfile(run / name, finished / name)


def _resolved_config(
    params: PretrainParams,
    grid: GridParams,
    mix: Mapping[str, MixParams],
    indexes: Mapping[str, ShardIndex],
    steps: int,
    best: BestTeacher | None,
    ranks: Ranks,
    origin: Mapping[str, Any],
) -> TrainedConfig:
    shards = [
        SeenBatch(
            batch=name,
            weight=mix[name].weight,
            fingerprint=index.fingerprint,
            num_images=len(index.select("train")),
            num_patients=len(np.unique(index.rows["patient"][index.select("train")])),
            patient_grouping=index.dataset.patient_grouping,
            kind=index.dataset.kind,
            shards=tuple(SeenTar(name=tar.name, sha256=tar.sha256) for tar in index.shards if tar.split == "train"),
        )
        for name, index in indexes.items()
    ]
    return TrainedConfig(
        format_version=FORMAT_VERSION,
        params=TrainedParams(
            pretrain=PretrainSection.model_validate(params.model_dump(mode="json", by_alias=True)),
            grid=grid.spec,
            batches={name: MixedBatch(mix=item) for name, item in mix.items()},
        ),
        shards=tuple(shards),
        steps=steps,
        best=None if best is None else BestStep(step=best.step, score=best.score, metric=best.metric),
        num_processes=ranks.world_size,
        device=ranks.device.type,
        hardware=hardware(),
        versions=recorded_versions(),
        **origin,
    )
