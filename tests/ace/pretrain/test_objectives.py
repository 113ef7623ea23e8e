"""The objectives beside ACE, and its ablations: what is built, what learns, and what the loss is."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ace.config import Config, resolve
from ace.data.batches import PairBatch, ViewBatch
from ace.embed.encoder import load_encoder
from ace.engine.stop import StopRequest
from ace.models.device import default_device
from ace.pretrain.objective import Objective, branches_of
from ace.pretrain.params import PretrainParams
from ace.pretrain.pretrain import build_state, pretrain
from ace.pretrain.state import TrainState
from shards.core.errors import ConfigError
from shards.core.grid import Scale
from tests.ace.pretrain.conftest import ROOT, tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.synthetic import loss_on, pair_batch, totals_on, view_batch, with_tissue
from tests.oracles import losses

GRID = tiny_grid(
    n=9, t=4, min_overlap=0.3, scales=[{"k": k, "l": l, "weight": 1.0} for k, l in ((1, 1), (2, 2), (1, 2))]
)
SPEC = GRID.spec
WEIGHTS = {"global": 0.3, "decomposition": 0.7, "composition": 0.9, "removal": 0.0}
HEADS = {"local_head": {"form": "mlp", "hidden_dim": 8}, "composer": "mlp", "decomposer": "mlp"}


def params_of(objective: str, *, learnable: bool = True, **weights: float) -> PretrainParams:
    matching = {"alpha_decomposition": 0.9, "alpha_composition": 0.8}
    matching |= {"logits": {"scale": 8.0, "bias": -3.0, "learnable": learnable}}
    changes = {"objective": objective, "loss_weights": {**WEIGHTS, **weights}, "matching_loss": matching, **HEADS}
    return tiny_params(**changes, batch_size=4)


def state_of(params: PretrainParams, seed: int = 0) -> TrainState:
    """Networks whose teacher is not the student, and a centre that is not 0."""
    torch.manual_seed(seed)
    state = build_state(params, GRID, default_device())
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state.center = 0.1 * torch.randn_like(state.center)
    state.student.eval()
    return state


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    """Of every trainable parameter, and none may lack one."""
    found = {name: p.grad for name, p in state.student.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in found.items() if gradient is None]
    return {name: gradient.clone() for name, gradient in found.items()}


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def expected_view_loss(state: TrainState, batch: ViewBatch, params: PretrainParams) -> float:
    """From the networks' logits, one view at a time, by the oracle."""
    visible = (batch.view_shown > 0.5).unbind(1)
    views = list(zip(batch.seen(), visible, strict=True))
    with torch.no_grad():
        ours = [state.student([view], [mask], None).logits[0] for view, mask in views]
    theirs = [state.teacher([view], [mask], is_pair=False).logits[0] for view, mask in views[: batch.num_teacher_views]]
    valid = (batch.view_shown > 0.5).any(2).all(1).cpu().numpy()
    temperature = params.global_loss.student_temperature
    arrays = [np.stack([double(logits) for logits in side]) for side in (ours, theirs)]
    return losses.view_consistency(*arrays, valid, double(state.center), temperature, 0.04) / max(valid.sum(), 1)


@pytest.mark.parametrize(
    ("objective", "num_views", "num_teacher_views"), [("dino", 2, 2), ("ace_v2", 4, 2), ("ace_v2", 3, 1)]
)
@pytest.mark.parametrize("share_erased", [0.0, 0.85])
def test_the_loss_of_views_is_that_of_the_oracle(
    objective: str, num_views: int, num_teacher_views: int, share_erased: float
) -> None:
    params = params_of(objective)
    state, rng = state_of(params), np.random.default_rng(num_views)
    values = {"num_views": num_views, "num_teacher_views": num_teacher_views, "share_erased": share_erased}
    batch = view_batch(SPEC, rng, **values, size=6)
    result = loss_on(state, batch, params, GRID.t)
    expected = expected_view_loss(state, batch, params)
    assert result.terms["loss_views"].item() == pytest.approx(expected, rel=1e-4)
    assert result.loss.item() == pytest.approx(0.3 * expected, rel=1e-4)
    assert set(result.terms) == {"loss", "loss_views"}
    assert result.removal_sums is None
    assert Objective.of(params, GRID.t).teach(state.teacher, batch).features.shape[0] == 6 * num_teacher_views
    logits, rows = result.center_sum
    assert rows == num_teacher_views * (batch.view_shown > 0.5).any(2).all(1).sum()
    assert logits.shape == state.center.shape


@pytest.mark.parametrize(
    ("objective", "num_views", "num_teacher_views"), [("dino", 2, 2), ("ace_v2", 4, 2), ("ace_v2", 3, 1)]
)
def test_the_removal_term_of_views_takes_those_of_the_teacher_and_asks_for_the_tissue_put_into_each(
    objective: str, num_views: int, num_teacher_views: int
) -> None:
    params, rng = params_of(objective, removal=0.6), np.random.default_rng(num_views)
    state, values = state_of(params), {"num_views": num_views, "num_teacher_views": num_teacher_views}
    batch = with_tissue(view_batch(SPEC, rng, **values, size=6, share_erased=0.4), rng)
    student, teacher, inserted, shown = [], [], [], []
    for view in range(num_teacher_views):
        student.append(double(state.student.backbone(batch.seen()[view]).flatten(1, 2)))
        teacher.append(double(state.teacher.backbone(batch.whole()[view]).flatten(1, 2)))
        is_filled = batch.donated[:, view].cpu().numpy()[:, None, None]
        inserted.append(is_filled * teacher[view][[1, 0, 3, 2, 5, 4]])
        shown.append(double(batch.view_shown[:, view]))
    error, energy = losses.removal(*(np.concatenate(arrays) for arrays in (student, teacher, shown, inserted)))
    result = loss_on(state, batch, params, GRID.t)
    assert result.terms["loss_removal"].item() == pytest.approx(error / energy, rel=1e-4)
    parts = 0.3 * result.terms["loss_views"] + 0.6 * result.terms["loss_removal"]
    assert result.loss.item() == pytest.approx(parts.item(), rel=1e-5)


def test_dino_builds_the_global_head_alone_whatever_the_weights() -> None:
    state = state_of(params_of("dino"))
    parts = {name.partition(".")[0] for name, _ in state.student.named_parameters()}
    assert parts == {"backbone", "global_head"}
    assert state.teacher.local_head is None


def phases(rng: np.random.Generator, *, size: int = 4, share_erased: float = 0.2) -> dict[str, PairBatch | ViewBatch]:
    """A batch of every kind that `ace_v2` shows."""
    values = {"size": size, "share_erased": share_erased}
    return {
        "uniqueness": view_batch(SPEC, rng, num_views=3, num_teacher_views=2, **values),
        "consistency": pair_batch(SPEC, Scale(1, 1, 1.0), rng, **values),
        "composition and decomposition": pair_batch(SPEC, Scale(2, 2, 1.0), rng, **values),
        "another scale": pair_batch(SPEC, Scale(1, 2, 1.0), rng, **values),
    }


USED = {
    "uniqueness": {"backbone", "global_head"},
    "consistency": {"backbone", "global_head", "local_head", "decomposition_logits", "composition_logits"},
}


@pytest.mark.parametrize("removal", [0.0, 0.6])
@pytest.mark.parametrize("learnable", [True, False])
def test_every_parameter_gets_a_gradient_in_every_phase_and_those_in_use_one_that_is_not_0(
    learnable: bool, removal: float
) -> None:
    params = params_of("ace_v2", learnable=learnable, removal=removal)
    state = state_of(params)
    for phase, batch in phases(np.random.default_rng(0)).items():
        state.student.zero_grad(set_to_none=True)
        loss_on(state, batch, params, GRID.t).loss.backward()
        moved = {name for name, gradient in gradients(state).items() if gradient.count_nonzero()}
        used = {name.split(".")[0] for name in moved}
        if phase in USED:
            assert used == USED[phase] - (set() if learnable else {"decomposition_logits", "composition_logits"}), phase
        else:
            scale = "2x2" if phase != "another scale" else "1x2"
            assert {name.split(".")[1] for name in moved if name.startswith(("comp", "decomp")) and "x" in name} == {
                scale
            }
            assert used >= {"composers", "decomposers", "backbone", "global_head", "local_head"}


@pytest.mark.parametrize(("removal", "share_erased"), [(0.0, 0.2), (0.6, 0.2), (0.6, 0.0)])
def test_ddp_without_a_search_for_unused_parameters_goes_through_all_phases(
    removal: float, share_erased: float, tmp_path: Path
) -> None:
    params = params_of("ace_v2", removal=removal)
    state, batches = state_of(params), phases(np.random.default_rng(1), share_erased=share_erased)
    expected = {}
    for phase, batch in batches.items():
        state.student.zero_grad(set_to_none=True)
        loss_on(state, batch, params, GRID.t).loss.backward()
        expected[phase] = gradients(state)
    state.student.zero_grad(set_to_none=True)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(state.student)
        for phase, batch in batches.items():
            wrapped.zero_grad(set_to_none=True)
            loss_on(state, batch, params, GRID.t, student=wrapped).loss.backward()
            for name, gradient in gradients(state).items():
                torch.testing.assert_close(gradient, expected[phase][name], msg=f"{phase}: {name}")
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("removal", [0.0, 0.6])
@pytest.mark.parametrize("phase", ["uniqueness", "consistency", "composition and decomposition"])
def test_losses_gradients_and_sums_of_micro_batches_add_up_to_the_whole_batch(phase: str, removal: float) -> None:
    params = params_of("ace_v2", removal=removal)
    state, batch = state_of(params), phases(np.random.default_rng(2), size=6, share_erased=0.9)[phase]
    totals = totals_on(state, batch, params, GRID.t)
    assert 0 < totals.num_valid < 6, "some samples have nothing to pool"
    whole = loss_on(state, batch, params, GRID.t)
    whole.loss.backward()
    expected = gradients(state)
    state.student.zero_grad(set_to_none=True)
    parts = [loss_on(state, part, params, GRID.t, totals=totals, share=1 / 3) for part in batch.split(3)]
    taught = [Objective.of(params, GRID.t).teach(state.teacher, part) for part in batch.split(3)]
    counted = Objective.of(params, GRID.t).totals(batch, taught, 3)
    torch.testing.assert_close(vars(counted), vars(totals))
    for part in parts:
        part.loss.backward()
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name in whole.terms:
        if not name.startswith("accuracy"):
            torch.testing.assert_close(sum(part.terms[name] for part in parts), whole.terms[name], msg=name)
    for total, sums in zip(whole.center_sum, zip(*(part.center_sum for part in parts), strict=True), strict=True):
        torch.testing.assert_close(sum(sums), total)
    assert (whole.removal_sums is not None) == (totals.teacher_energy > 0) == (removal > 0)
    if whole.removal_sums is not None:
        torch.testing.assert_close(sum(part.removal_sums for part in parts), whole.removal_sums)
    for name, gradient in gradients(state).items():
        torch.testing.assert_close(gradient, expected[name], msg=name, atol=1e-6, rtol=1e-4)


ABLATIONS = [flags for flags in itertools.product([True, False], repeat=4) if any(flags[:3])]


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("flags", ABLATIONS, ids=lambda flags: "".join("gdcr"[i] for i in range(4) if flags[i]))
def test_an_ablation_builds_trains_and_weighs_its_terms_alone(
    flags: tuple[bool, bool, bool, bool], scale: tuple[int, int]
) -> None:
    """Its terms are those of the whole objective with the same networks, its gradients the weighted sum of theirs."""
    full_weights = {**WEIGHTS, "removal": 0.6 * flags[3]}  # with it the teacher sees other crops, so it is in both
    weights = {name: full_weights[name] * flag for name, flag in zip(full_weights, flags, strict=True)}
    params, everything = params_of("ace", **weights), params_of("ace", **full_weights)
    state, whole = state_of(params), state_of(everything)
    with torch.no_grad():
        for ours, full in ((state.student, whole.student), (state.teacher, whole.teacher)):
            source = full.state_dict()
            ours.load_state_dict({name: source[name] for name in ours.state_dict()})
    state.center = whole.center
    batch = pair_batch(SPEC, Scale(*scale, 1.0), np.random.default_rng(3), share_erased=0.2)
    result = loss_on(state, batch, params, GRID.t)
    result.loss.backward()
    found, expected_terms = gradients(state), loss_on(whole, batch, everything, GRID.t).terms
    on = [name for name, flag in zip(full_weights, flags, strict=True) if flag]
    assert {name for name in result.terms if name.startswith("loss_") and not name.endswith("excess")} == {
        f"loss_{name}" for name in on
    }
    for name in result.terms.keys() - {"loss"}:
        torch.testing.assert_close(result.terms[name], expected_terms[name], msg=name)
    total = sum(full_weights[name] * expected_terms[f"loss_{name}"] for name in on)
    torch.testing.assert_close(result.loss.detach(), total)

    built = {"global": {"global_head"}, "decomposition": {"local_head", "decomposers", "decomposition_logits"}}
    built |= {"composition": {"local_head", "composers", "composition_logits"}, "removal": set()}
    parts = {name.split(".")[0] for name in found}
    assert parts == set().union({"backbone"}, *(built[name] for name in on))
    assert {name.split(".")[0] for name, gradient in found.items() if gradient.count_nonzero()} == parts - (
        {"composers", "decomposers"} if scale == (1, 1) else set()
    )
    assert (result.center_sum is None) == (not flags[0])
    branches = branches_of(params)
    assert (branches.global_, branches.decomposition, branches.composition, branches.removal) == flags


@pytest.mark.parametrize("objective", ["dino", "ace_v2"])
def test_views_need_the_global_term_and_fresh_crops(objective: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective is {objective} and loss_weights\.global 0: .*above 0"):
        params_of(objective, **{"global": 0.0})
    with pytest.raises(ConfigError, match=rf"objective is {objective} and crops is bank: .*set crops to fresh"):
        tiny_params(objective=objective, crops="bank")
    assert params_of("ace", **{"global": 0.0}).objective == "ace"


def test_removal_with_nothing_erased_and_removal_alone_are_refused() -> None:
    augment = tiny_params().augment.model_dump()
    augment["erase"]["probability"] = 0.0
    words = r"loss_weights\.removal is 0\.25 and augment\.erase\.probability 0: .*set the probability above 0"
    with pytest.raises(ConfigError, match=words):
        tiny_params(loss_weights={**WEIGHTS, "removal": 0.25}, augment=augment)
    assert tiny_params(loss_weights=WEIGHTS, augment=augment).loss_weights.removal == 0
    alone = {"global": 0.0, "decomposition": 0.0, "composition": 0.0, "removal": 0.25}
    with pytest.raises(ConfigError, match=r"composition are all 0 \(removal is 0\.25\), .*at least one of the three"):
        tiny_params(loss_weights=alone)
    with pytest.raises(ConfigError, match=r"removal"):
        tiny_params(loss_weights={**WEIGHTS, "removal": -0.25})


def test_ace_v2_on_a_grid_of_nothing_but_one_to_one_is_refused_by_the_configuration() -> None:
    values = resolve("demo", ROOT / "configs")
    values["pretrain"]["objective"] = "ace_v2"
    Config.from_params(values, "demo")
    values["grid"]["scales"] = [{"k": 1, "l": 1, "weight": 1.0}]
    with pytest.raises(ConfigError, match=r"ace_v2 needs a scale other than 1x1"):
        Config.from_params(values, "demo")
    values["pretrain"]["objective"] = "dino"
    Config.from_params(values, "demo")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("dino", [{"loss_views", "loss_removal"}] * 3),
        (
            "ace_v2",
            [
                {"loss_views", "loss_removal"},
                *[{"loss_global", "loss_decomposition", "loss_composition", "loss_removal"}] * 2,
            ],
        ),
    ],
)
def test_a_run_trains_each_epoch_on_what_its_objective_shows(
    objective: str, expected: list[set[str]], noise_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    out, params = tmp_path / "model", tiny_params(objective=objective, epochs=3, checkpoint_every_s=60)
    places = {"shards_root": noise_shards, "out": out, "metrics_dir": tmp_path / "metrics"}
    pretrain(params, tiny_grid(), tiny_mix(), **places, request=StopRequest(None))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["epoch"] for row in rows} == {0, 1, 2}
    for row in rows:
        terms = {name for name in row if name.startswith("loss_") and not name.endswith("_excess")}
        assert terms == expected[row["epoch"]]
        assert all(math.isfinite(value) for value in row.values())
    assert load_encoder(out).backbone.width == 32
