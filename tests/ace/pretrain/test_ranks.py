"""Several processes train one network: what would pull them apart is refused, and noticed where it happens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ace.engine.ranks import Ranks, checksum
from ace.models.backbone import build_backbone
from ace.pretrain.identity import identity_of
from ace.pretrain.pretrain import check_statistics
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex
from tests.ace.pretrain.conftest import BATCH, tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import finish, kill_all, saved_steps, start_run

RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "output_stride": 8}
"""Of a small ResNet with tokens of 8 px."""
BENT = """
import os
import torch
from ace.pretrain.step import PretrainStep
take = PretrainStep.__call__
def call(step, *arguments, **options):
    outcome, state = take(step, *arguments, **options), step.state
    if os.environ["RANK"] == "1" and state.step == 4:
        {change}
    return outcome
PretrainStep.__call__ = call
"""
"""Python that changes something in one of two processes, after the fourth step."""


def backbone_of(name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_params().backbone.model_dump(), "name": name, "model_args": model_args, "drop_path": 0.0}


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [(2, {}), (1, {"num_micro_batches": 2}), (1, {"checkpoint_activations": True})],
    ids=["processes", "micro-batches", "activations computed again"],
)
def test_batch_statistics_are_refused_wherever_a_step_is_taken_in_parts(
    world_size: int, changes: dict[str, Any]
) -> None:
    params = tiny_params(backbone=backbone_of("resnet18", RESNET), **changes)
    backbone = build_backbone(params.backbone, tiny_grid().spec)
    with pytest.raises(ConfigError, match=r"resnet18 has 12 layers with statistics of the batch, as model\.bn1"):
        check_statistics(backbone, params, world_size)
    check_statistics(backbone, tiny_params(backbone=params.backbone.model_dump()), 1)
    vit = tiny_params(**changes)
    check_statistics(build_backbone(vit.backbone, tiny_grid().spec), vit, world_size)


@pytest.mark.slow
def test_two_processes_refuse_a_backbone_with_batch_norm(noise_shards: Path, tmp_path: Path) -> None:
    processes = start_run(noise_shards, tmp_path, num_ranks=2, backbone=backbone_of("resnet18", RESNET))
    for said in finish(processes, 2):
        assert "resnet18 has 12 layers with statistics of the batch" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("state.student.backbone.model.norm.bias.data[3] += 1e-6", "student.backbone.model.norm.bias"),
        pytest.param(
            "state.teacher.backbone.model.pos_embed.data[0, 0, 0] *= -1",
            "teacher.backbone.model.pos_embed",
            marks=pytest.mark.slow,
        ),
        pytest.param("state.center[0] += 1e-6", "center", marks=pytest.mark.slow),
    ],
    ids=["student", "teacher", "center"],
)
def test_processes_whose_networks_differ_in_one_number_all_end_with_its_name(
    change: str, named: str, noise_shards: Path, tmp_path: Path
) -> None:
    options = {"log_every_steps": 4, "checkpoint_every_s": 3600}
    prelude = BENT.format(change=change)
    for said in finish(start_run(noise_shards, tmp_path, num_ranks=2, prelude=prelude, **options), 2):
        assert "error: step 4: " in said
        assert "tensors differ between the processes" in said
        assert f"as {named}; expected" in said
        assert "Traceback" not in said
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_achecksum_changes_with_every_single_value_of_every_type(dtype: torch.dtype) -> None:
    values = torch.arange(24).remainder(2).view(2, 3, 4).to(dtype)
    for place in range(24):
        other = values.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place].int()
        assert checksum(other) != checksum(values)
    assert checksum(values.transpose(0, 1).contiguous().transpose(0, 1)) == checksum(values)
    assert checksum(values[0, 0, 0]).dtype == torch.int64


def test_a_step_sends_no_buffers_between_the_processes(tmp_path: Path) -> None:
    """A Swin has tables of constants, which are made equal when the networks are wrapped."""
    window = {"patch_size": 8, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 2}
    model_params = tiny_params(backbone=backbone_of("swin_tiny_patch4_window7_224", window)).backbone
    backbone = build_backbone(model_params, tiny_grid(t=4).spec)
    assert list(backbone.buffers())
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        learner = Ranks(0, 2, torch.device("cpu")).averaging(backbone)
        with torch.profiler.profile() as profile:
            learner(torch.zeros(2, 1, 32, 32)).sum().backward()
    finally:
        distributed.destroy_process_group()
    sent = {event.name for event in profile.events() if "c10d::" in event.name}
    assert sent == {"c10d::allreduce_"}


FAILING = """
import os, time
from ace.engine import notices
from ace.pretrain.step import PretrainStep
notices.GRACE_S, notices.POLL_S = 0.5, 0.1
take = PretrainStep.__call__
def call(step, *arguments, **options):
    state = step.state
    if state.step == 4 and os.environ["RANK"] == "{failing}":
        raise RuntimeError("out of memory")
    if state.step == 4 and {is_deaf}:
        time.sleep(3600)
    return take(step, *arguments, **options)
PretrainStep.__call__ = call
"""
"""Python that lets one process fail at its fifth step; a deaf other one waits as it would in an accelerator's sum."""


@pytest.mark.parametrize(
    ("failing", "is_deaf"),
    [(1, True), pytest.param(0, True, marks=pytest.mark.slow), pytest.param(1, False, marks=pytest.mark.slow)],
    ids=["the last, the other waits", "the first, the other waits", "the last, the other hears the connection close"],
)
def test_one_process_that_fails_ends_the_other_soon_and_the_cause_is_printed_once(
    failing: int, is_deaf: bool, noise_shards: Path, tmp_path: Path
) -> None:
    processes = start_run(noise_shards, tmp_path, num_ranks=2, prelude=FAILING.format(failing=failing, is_deaf=is_deaf))
    try:
        said = finish(processes, 1)
    finally:
        kill_all(processes)
    assert said[failing].count("RuntimeError: out of memory") == 1
    assert "Traceback" in said[failing]
    other = said[1 - failing]
    assert f"error: process {failing} of 2: RuntimeError: out of memory; so this process" in other
    assert "Traceback" not in other


BROKEN_START = """
import os
from ace.pretrain import pretrain as stage
begin = stage._begin
def _begin(*arguments):
    if os.environ["RANK"] == "1":
        raise {error}
    return begin(*arguments)
stage._begin = _begin
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('RuntimeError("no memory left")', 1),
        pytest.param(
            '__import__("shards.core.errors").core.errors.OutOfReachError("no memory left")', 1, marks=pytest.mark.slow
        ),
    ],
    ids=["any error", "a server out of reach"],
)
def test_any_error_before_the_first_step_ends_all_with_its_reason(
    error: str, code: int, noise_shards: Path, tmp_path: Path
) -> None:
    """With the exit code for what may go better the next time."""
    processes = start_run(noise_shards, tmp_path, num_ranks=2, prelude=BROKEN_START.format(error=error))
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        kill_all(processes)
    assert processes[0].returncode == code
    assert "error: process 1 of 2: " in said[0]
    assert "no memory left" in said[0]
    assert "Traceback" not in said[0]


SEES_AN_ACCELERATOR = """
import os
import torch
from ace.engine import ranks
if os.environ["RANK"] == "0":
    ranks._local_device = lambda name: torch.device("cuda", 0)
"""
"""Python that makes the first process believe so; it must not come to use it."""


def test_processes_of_which_some_see_no_accelerator_end_before_they_wait_for_each_other(
    noise_shards: Path, tmp_path: Path
) -> None:
    for said in finish(start_run(noise_shards, tmp_path, num_ranks=2, prelude=SEES_AN_ACCELERATOR), 2):
        assert "error: the processes found different devices (cpu: 1; cuda: 0); expected one kind" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_configuration_that_requires_an_accelerator_never_trains_without(
    num_ranks: int, noise_shards: Path, tmp_path: Path
) -> None:
    for said in finish(start_run(noise_shards, tmp_path, num_ranks=num_ranks, device="cuda"), 2):
        assert "error: device 'cuda': " in said
        assert "use auto, cpu or a device of this machine" in said
    assert not (tmp_path / "scratch").exists()


def test_the_first_line_of_a_run_says_on_what_it_is_computed(noise_shards: Path, tmp_path: Path) -> None:
    """Asked for an accelerator by the configuration, and for the CPU by whoever runs it."""
    options = {"epochs": 2, "precision": "bf16", "device": "cuda"}
    said, other = finish(start_run(noise_shards, tmp_path, num_ranks=2, on_device="cpu", **options))
    first = said.splitlines()[1]
    assert first == f"pretrain: on cpu (no accelerator seen by torch {torch.__version__}), in bf16, by 2 process(es)"
    assert "pretrain: on" not in other


def test_the_device_may_be_another_when_a_run_goes_on(noise_shards: Path) -> None:
    indexes = {BATCH: ShardIndex.open(noise_shards / BATCH)}
    identities = [identity_of(tiny_params(**c), tiny_grid(), tiny_mix(), indexes) for c in ({}, {"device": "cpu"})]
    assert identities[0] == identities[1]
