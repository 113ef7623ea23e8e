"""One step: the same over processes and micro-batches as on the whole batch at once."""

import copy
import itertools
import json
import os
import signal
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils._python_dispatch import TorchDispatchMode

from ace.engine.training import seed_of
from ace.models.backbone import build_backbone
from ace.pretrain.objective import Objective
from ace.pretrain.pretrain import samples_per_rank
from ace.pretrain.state import TrainState
from shards.core.errors import ConfigError
from tests.ace.models.test_backbone import grid, params
from tests.ace.pretrain import steps
from tests.ace.pretrain.conftest import ROOT, demo_values, tiny_params
from tests.ace.pretrain.runs import finish, free_port
from tests.ace.pretrain.steps import (
    BATCHES,
    GRID,
    NUM_SAMPLES,
    batch_erased_in_one_half,
    batch_of_one_valid_sample,
    batch_with_gaps,
    batch_with_tissue,
    fresh_state,
    record,
    settings,
    step_on,
    without_removal,
)
from tests.oracles import losses as oracle
from tests.support.forked import CONTEXT, Forked

MONITORS = {"feature_std", "effective_rank", "rank_fraction", "teacher_entropy"}
"""Measured on the first rank's last micro-batch, so other for another division."""
SETTINGS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}


def recorded(batch: str = "gaps", **changes: Any) -> dict[str, Any]:
    state = fresh_state(**changes)
    return record(state, step_on(state, BATCHES[batch](), **changes))


@cache
def undivided(batch: str) -> dict[str, Any]:
    """What the plain step on a whole batch recorded."""
    return recorded(batch)


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-5) -> None:
    for group in ("gradients", "student", "teacher"):
        assert found[group].keys() == expected[group].keys()
        for name, value in expected[group].items():
            torch.testing.assert_close(found[group][name], value, rtol=tolerance, atol=tolerance, msg=f"{group} {name}")
    torch.testing.assert_close(found["center"], expected["center"])
    assert found["terms"].keys() == expected["terms"].keys()
    for name in expected["terms"].keys() - MONITORS:
        if not name.startswith("accuracy"):  # a share of matches: samples with more of them count more in a whole batch
            torch.testing.assert_close(found["terms"][name], expected["terms"][name], rtol=1e-4, atol=1e-6)


def assert_same_networks_to_the_last_bit(first: dict[str, Any], second: dict[str, Any]) -> None:
    for group in ("gradients", "student", "teacher"):
        assert all(torch.equal(first[group][name], second[group][name]) for name in first[group])
    assert torch.equal(first["center"], second["center"])


def run_processes(
    folder: Path, num_processes: int, changes: dict[str, Any], batch: str = "gaps"
) -> list[dict[str, Any]]:
    """What each process recorded; none of them checks shapes, which a compiler cannot look through."""
    environment = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {**os.environ, **SETTINGS}
    code, arguments = "from tests.ace.pretrain.steps import run; run()", [str(folder), json.dumps(changes), batch]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    finish([Forked(code, arguments, env=environment | own, cwd=ROOT) for own in ranks])
    return recorded_in(folder, num_processes)


def recorded_in(folder: Path, num_processes: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes recorded that torchrun's launcher started, from processes that have torch already."""
    folder = tmp_path_factory.mktemp("two")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method=CONTEXT.get_start_method(),
    )
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        elastic_launch(config, steps.run_with)(SETTINGS, str(folder), "{}", "gaps")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return recorded_in(folder, 2)


def test_the_halves_of_the_batches_differ_in_what_counts() -> None:
    state, objective = fresh_state(), Objective.of(tiny_params(**settings()), GRID.t)
    gaps, erased = (
        [objective.totals(half, [objective.teach(state.teacher, half)], 1) for half in batch.split(2)]
        for batch in (batch_with_gaps(), batch_erased_in_one_half())
    )
    assert [half.num_valid for half in gaps] == [3, 2]
    assert all(half.teacher_energy > 0 for half in gaps)
    assert erased[0].teacher_energy == 0
    assert erased[1].teacher_energy > 0


@pytest.mark.slow
def test_two_processes_make_the_step_of_one_on_the_concatenated_batch(two_processes: list[dict[str, Any]]) -> None:
    assert_same(two_processes[0], undivided("gaps"))


@pytest.mark.parametrize(
    ("batch", "is_removal"),
    [("gaps", False), ("erased in one half", True), ("tissue", True)],
    ids=["no removal", "erased in one half", "tissue"],
)
def test_two_processes_also_make_that_step_without_removal_and_where_one_has_nothing_erased(
    batch: str, is_removal: bool, tmp_path: Path
) -> None:
    changes = {"num_micro_batches": 2} if is_removal else without_removal()
    found = run_processes(tmp_path, 2, changes, batch)
    expected = undivided(batch) if is_removal else recorded(batch, **changes)
    assert ("removal_change_outside" in expected["terms"]) == is_removal
    for one in found:
        assert_same(one, expected)
    assert_same_networks_to_the_last_bit(*found)


def test_a_process_without_a_valid_sample_leaves_the_weight_of_the_others_samples_as_it_is(tmp_path: Path) -> None:
    """Of two processes' samples one is valid: its loss is the step's, as in one process and as of that sample alone."""
    objective = Objective.of(tiny_params(**settings()), GRID.t)
    halves = [objective.totals(half, [], 2).num_valid for half in batch_of_one_valid_sample().split(2)]
    assert halves == [0, 1]
    found, expected = run_processes(tmp_path, 2, {}, "one valid"), undivided("one valid")
    for one in found:
        assert_same(one, expected)
    alone = step_on(fresh_state(), batch_of_one_valid_sample().split(NUM_SAMPLES)[-1])
    assert found[0]["terms"]["loss_global"] == pytest.approx(alone.values["loss_global"].item(), rel=1e-5)


def test_a_step_without_any_valid_sample_has_no_global_term_and_a_finite_gradient() -> None:
    state, batch = fresh_state(precision="fp16"), batch_of_one_valid_sample().split(2)[0]
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    outcome = step_on(state, batch, precision="fp16")
    assert outcome.is_finite
    assert outcome.values["loss_global"] == 0


@pytest.mark.slow
def test_both_processes_have_the_same_networks_to_the_last_bit(two_processes: list[dict[str, Any]]) -> None:
    assert_same_networks_to_the_last_bit(*two_processes)


@pytest.mark.parametrize(
    ("batch", "num_micro_batches"),
    # Images exchange tissue in pairs, so that the parts of such a batch have two at least.
    [(batch, number) for batch in BATCHES for number in (2, 4, 8) if (batch, number) != ("tissue", 8)],
)
def test_accumulated_gradients_are_those_of_the_large_batch(num_micro_batches: int, batch: str) -> None:
    assert_same(recorded(batch, num_micro_batches=num_micro_batches), undivided(batch))


def test_accumulated_gradients_without_removal_are_those_of_the_large_batch() -> None:
    assert_same(recorded(num_micro_batches=4, **without_removal()), recorded(**without_removal()))


def test_the_monitors_of_removal_are_logged_where_something_is_erased() -> None:
    names = {"removal_erased_length", "removal_change_outside"}
    erased = step_on(fresh_state(), batch_erased_in_one_half())
    assert names <= erased.values.keys()
    assert all(erased.values[name] > 0 for name in names)
    whole = step_on(fresh_state(), batch_erased_in_one_half().split(2)[0])
    assert whole.values["loss_removal"] == 0
    assert not names & whole.values.keys()
    plain = step_on(fresh_state(**without_removal()), batch_erased_in_one_half(), **without_removal())
    assert not (names | {"loss_removal"}) & plain.values.keys()


def test_tissue_put_into_a_crop_is_asked_for_by_the_partners_tokens_of_the_same_crop() -> None:
    batch, state, params = batch_with_tissue(), fresh_state(), tiny_params(**settings())
    taught = Objective.of(params, GRID.t).teach(state.teacher, batch)
    seen = state.student(batch.seen(), [torch.ones(NUM_SAMPLES, GRID.t**2) > 0] * 2, (2, 2)).tokens
    inserted = torch.zeros_like(taught.tokens)
    for crop, sample in itertools.product(range(2), range(NUM_SAMPLES)):
        if batch.donated[sample, crop]:
            inserted[crop, sample] = taught.tokens[crop, sample + 1 if sample % 2 == 0 else sample - 1]
    values = [tokens.detach().double().flatten(0, 1).numpy() for tokens in (seen, taught.tokens)]
    shown = torch.cat([batch.coarse_shown, batch.fine_shown]).double().numpy()
    error, energy = oracle.removal(*values, shown, inserted.double().flatten(0, 1).numpy())
    emptied, _ = oracle.removal(*values, shown)
    found = step_on(state, batch).values["loss_removal"].item()
    assert found == pytest.approx(error / energy, rel=1e-5)
    assert found != pytest.approx(emptied / energy, rel=1e-3)


def test_the_monitors_leave_out_crops_that_show_tissue() -> None:
    batch = batch_with_tissue()
    every = replace(batch, donated=torch.ones_like(batch.donated))
    assert not {"removal_erased_length", "removal_change_outside"} & step_on(fresh_state(), every).values.keys()


def test_parts_that_cannot_exchange_tissue_in_pairs_are_refused() -> None:
    weights = settings()["loss_weights"]
    params = tiny_params(num_micro_batches=8, augment=demo_values("pretrain")["augment"], loss_weights=weights)
    with pytest.raises(ConfigError, match=r"batch_size 8 gives parts of 1 image\(s\).*fills\.tissue needs an even"):
        samples_per_rank(params, 1)


def test_activations_computed_again_change_no_value() -> None:
    assert_same(recorded(checkpoint_activations=True), undivided("gaps"))


def test_a_backbone_without_activation_checkpointing_says_so() -> None:
    with torch.device("meta"):
        model = build_backbone(params("cspresnet50"), grid(8, 32))
    with pytest.raises(ConfigError, match="CspNet has no activation checkpointing"):
        model.checkpoint_activations()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_gradient_and_fp32_weights(precision: str) -> None:
    state, expected = fresh_state(precision=precision), undivided("gaps")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
    found = record(state, step_on(state, batch_with_gaps(), precision=precision))
    gradients = [
        torch.cat([side["gradients"][name].flatten() for name in expected["gradients"]]) for side in (found, expected)
    ]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.1)
    assert {value.dtype for value in found["student"].values()} == {torch.float32}
    assert found["terms"]["loss"] == pytest.approx(expected["terms"]["loss"].item(), rel=0.02)
    assert ("loss_scale" in found["terms"]) == (precision == "fp16")


def test_a_loss_scale_that_overflows_is_lowered_and_the_step_left_out() -> None:
    state = fresh_state(precision="fp16")
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    outcome = step_on(state, batch_with_gaps(), precision="fp16")
    assert outcome.is_overflow
    assert not outcome.is_finite
    assert state.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in state.student.state_dict().items())
    assert state.step == 1


def test_a_nonfinite_loss_changes_nothing_but_the_number_of_the_step() -> None:
    state = fresh_state()
    with torch.no_grad():
        state.student.backbone.model.patch_embed.proj.bias[0] = float("nan")
    networks = (state.student, state.teacher)
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    center = state.center.clone()
    outcome = step_on(state, batch_with_gaps())
    assert not outcome.is_finite
    assert not outcome.is_overflow
    assert torch.equal(state.center, center)
    for network, values in zip(networks, before, strict=True):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, values[name], equal_nan=True, rtol=0, atol=0)
    assert state.step == 1


def test_random_draws_differ_between_steps_and_ranks_and_repeat_for_the_same() -> None:
    seeds = {(step, rank): seed_of(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(set(seeds.values())) == 200
    assert seed_of(0, 3, 1) == seeds[3, 1]
    assert seed_of(1, 3, 1) != seeds[3, 1]


def test_stochastic_depth_follows_from_the_step_whatever_was_drawn_before() -> None:
    changes = {"backbone": tiny_params().backbone.model_dump() | {"drop_path": 0.5}}
    losses = []
    for num_burned in (0, 17):
        state = fresh_state(**changes)
        torch.rand(num_burned)
        losses.append(step_on(state, batch_with_gaps(), **changes).local_loss)
    assert losses[0] == losses[1]
    assert losses[0] != step_on(fresh_state(), batch_with_gaps()).local_loss


@pytest.mark.slow
def test_a_compiled_backbone_makes_the_same_step(tmp_path: Path) -> None:
    (found,) = run_processes(tmp_path, 1, {"compile": True})
    assert_same(found, undivided("gaps"), tolerance=1e-4)


CONVNEXT = {"patch_size": 4, "depths": [1, 1, 0, 0], "dims": [8, 16, 16, 16], "output_stride": 8, "kernel_sizes": 3}
CONVOLUTIONS = {"backbone": tiny_params().backbone.model_dump() | {"name": "convnext_atto", "model_args": CONVNEXT}}


def with_channels_last(state: TrainState) -> TrainState:
    """The state with its kernels laid out as an accelerator has them."""
    state.student.to(memory_format=torch.channels_last)
    state.teacher.to(memory_format=torch.channels_last)
    return state


def test_kernels_with_their_channels_last_make_the_same_step() -> None:
    changes = {"backbone": CONVOLUTIONS["backbone"] | {"drop_path": 0.0}}
    state = with_channels_last(fresh_state(**changes))
    strides = [weight.stride() for weight in state.student.parameters() if weight.ndim == 4]
    assert any(stride[1] == 1 != stride[3] for stride in strides)
    assert_same(record(state, step_on(state, batch_with_gaps(), **changes)), recorded(**changes))


def test_a_run_goes_on_where_kernels_are_laid_out_otherwise() -> None:
    """As on the CPU with the checkpoint of an accelerator, and the other way round."""
    states = [fresh_state(**CONVOLUTIONS), with_channels_last(fresh_state(**CONVOLUTIONS))]
    saved = []
    for state in states:
        step_on(state, batch_with_gaps(), **CONVOLUTIONS)
        saved.append(copy.deepcopy(state.to_dict()))
    found = [fresh_state(**CONVOLUTIONS), with_channels_last(fresh_state(**CONVOLUTIONS))]
    for state, other in zip(found, reversed(saved), strict=True):
        state.load_dict(other)
    for one, other in zip([*found, states[0]], [states[1], states[0], states[1]], strict=True):
        outcomes = [record(state, step_on(state, batch_with_gaps(), **CONVOLUTIONS)) for state in (one, other)]
        assert_same(*outcomes)


@pytest.mark.parametrize("is_removal", [False, True])
def test_of_the_micro_batches_only_those_to_come_have_outputs_of_the_teacher(is_removal: bool) -> None:
    """Removal is divided by what the teacher gives for all of them; no other term has to know it beforehand."""
    changes: dict[str, Any] = {"num_micro_batches": 4, **({} if is_removal else without_removal())}
    state = fresh_state(**changes)
    given: list[weakref.ref[Any]] = []
    kept: list[int] = []
    state.teacher.register_forward_hook(lambda module, arguments, outputs: given.append(weakref.ref(outputs)))
    state.student.register_forward_pre_hook(
        lambda module, arguments: kept.append(sum(reference() is not None for reference in given))
    )
    step_on(state, batch_with_gaps(), **changes)
    assert kept == ([4, 3, 2, 1] if is_removal else [1, 1, 1, 1])


class Calls(TorchDispatchMode):
    """Counts the calls of operators whose name has a part in it."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.count = part, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += self.part in str(function)
        return function(*arguments, **(options or {}))


def test_a_logged_step_takes_the_singular_values_of_the_features_once() -> None:
    state = fresh_state()
    counts = []
    for is_logged in (True, False):
        with Calls("svd") as calls:
            outcome = step_on(state, batch_with_gaps(), is_logged=is_logged)
        counts.append(calls.count)
    assert counts == [1, 0]
    assert "rank_fraction" not in outcome.values


class ReadsByTheHost(TorchDispatchMode):
    """Counts how often a value is asked of a tensor, for which the host waits until an accelerator has computed it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_that_is_not_logged_asks_for_no_single_value(precision: str, batch: str) -> None:
    """It reads what decides whether the step counts in one list."""
    state = fresh_state(precision=precision)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
    step_on(state, BATCHES[batch](), precision=precision)
    with ReadsByTheHost() as reads:
        outcome = step_on(state, BATCHES[batch](), precision=precision, is_logged=False, is_stop_wanted=True)
    assert reads.count == 0
    assert outcome.is_finite
    assert outcome.is_stop_wanted
    assert isinstance(outcome.values["loss"], torch.Tensor)
