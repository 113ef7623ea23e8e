from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.data.batches import PairBatch
from ace.models.device import default_device
from ace.pretrain.params import PretrainParams
from ace.pretrain.pretrain import build_state
from ace.pretrain.state import TrainState
from shards.core.grid import Scale
from tests.ace.pretrain.conftest import tiny_grid, tiny_params
from tests.ace.pretrain.synthetic import loss_on, pair_batch, totals_on
from tests.oracles import losses, overlap
from tests.oracles import targets as oracle

SCALES = [(1, 1), (1, 2), (2, 1), (2, 2)]
GRID = tiny_grid(n=10, t=4, min_overlap=0.3, scales=[{"k": k, "l": l, "weight": 1.0} for k, l in SCALES])
WEIGHTS = {"global": 0.3, "decomposition": 0.7, "composition": 0.9}
PARAMS, REMOVAL = (tiny_params(batch_size=4, loss_weights={**WEIGHTS, "removal": removal}) for removal in (0.0, 0.4))


def state_of(params: PretrainParams) -> TrainState:
    """A teacher that is not the student."""
    torch.manual_seed(0)
    state = build_state(params, GRID, default_device())
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state.student.eval()
    return state


@pytest.fixture(scope="module")
def state() -> TrainState:
    return state_of(PARAMS)


def random_batch(share_erased: float, k: int = 2, l: int = 2) -> PairBatch:
    return pair_batch(GRID.spec, Scale(k, l, 1.0), np.random.default_rng(5), share_erased=share_erased)


def terms_of(state: TrainState, batch: PairBatch, params: PretrainParams = PARAMS) -> dict[str, torch.Tensor]:
    return loss_on(state, batch, params, GRID.t).terms


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def without_erased(target: np.ndarray, rows: np.ndarray, cols: np.ndarray, is_whole: bool) -> tuple[np.ndarray, ...]:
    return oracle.with_columns_erased(target, cols) if is_whole else oracle.with_erased(target, rows, cols)


@pytest.mark.parametrize(("k", "l"), SCALES)
@pytest.mark.parametrize("share_erased", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("params", [PARAMS, REMOVAL], ids=["the paper's", "removal"])
def test_all_terms_agree_with_the_oracle_also_where_tokens_are_erased(
    params: PretrainParams, share_erased: float, k: int, l: int
) -> None:
    state, batch, t = state_of(params), random_batch(share_erased, k, l), GRID.t
    is_whole = params is REMOVAL
    matches: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"decomposition": [], "composition": []}
    pooled: dict[str, list[np.ndarray]] = {"coarse": [], "fine": []}
    taught: dict[str, list[np.ndarray]] = {"coarse": [], "fine": []}
    for i in range(4):
        origins = tuple(tuple(origins[i].tolist()) for origins in (batch.coarse_origin, batch.fine_origin))
        coarse_erased, fine_erased = (~v[i].cpu().numpy() for v in (batch.coarse_visible, batch.fine_visible))
        fine_inside, coarse_inside = overlap.overlap_masks(*origins, t, k, l)
        pooled["coarse"].append(coarse_inside & ~coarse_erased)
        pooled["fine"].append(fine_inside & ~fine_erased)
        taught["coarse"].append(coarse_inside if is_whole else pooled["coarse"][-1])
        taught["fine"].append(fine_inside if is_whole else pooled["fine"][-1])
        parts_erased = np.kron(coarse_erased.reshape(t, t), np.ones((k, l))).ravel() > 0
        blocks = [fine_erased.reshape(t, t)[r : r + k, c : c + l] for r in range(0, t, k) for c in range(0, t, l)]
        wholes_erased = np.array([block.mean() >= 0.5 for block in blocks])
        target = oracle.decomposition_target(*origins, t, k, l)
        matches["decomposition"].append(without_erased(target, fine_erased, parts_erased, is_whole))
        target = oracle.composition_target(*origins, t, k, l)
        matches["composition"].append(without_erased(target, coarse_erased, wholes_erased, is_whole))

    seen, whole = batch.seen(), batch.whole()
    masks, theirs_in = (
        [torch.from_numpy(np.stack(rows[which])).to(default_device()) for which in ("coarse", "fine")]
        for rows in (pooled, taught)
    )
    with torch.no_grad():
        ours = state.student(seen, masks, (k, l))
    theirs = state.teacher(whole if is_whole else seen, theirs_in, is_pair=True)
    terms = terms_of(state, batch, params)
    for name, teacher_tokens, student_tokens in (
        ("decomposition", theirs.fine_tokens, ours.decomposed),
        ("composition", theirs.coarse_tokens, ours.composed),
    ):
        scale, bias = (value.item() for value in getattr(state.student, f"{name}_logits")())
        alpha = getattr(params.matching_loss, f"alpha_{name}")
        target, known = (np.stack(arrays) for arrays in zip(*matches[name], strict=True))
        value = losses.matching_loss(double(teacher_tokens), double(student_tokens), target, known, scale, bias, alpha)
        assert terms[f"loss_{name}"].item() == pytest.approx(value, rel=1e-5)
    valid = (masks[0].any(1) & masks[1].any(1)).cpu().numpy()
    logits = [*double(ours.logits), *double(theirs.logits)]
    temperature = params.global_loss.student_temperature
    total, count = losses.global_consistency(*logits, valid, double(state.center), temperature, 0.04)
    assert share_erased < 0.5 or 0 < count < 4, "some samples have nothing to pool"
    assert terms["loss_global"].item() == pytest.approx(total / count, rel=1e-5)
    if is_whole:
        shown = torch.cat([batch.coarse_shown, batch.fine_shown]).cpu().numpy()
        tokens = [double(outputs.tokens.flatten(0, 1)) for outputs in (ours, theirs)]
        error, energy = losses.removal(*tokens, shown)
        assert terms["loss_removal"].item() == pytest.approx(error / energy if share_erased else 0.0, rel=1e-5)
    assert ("loss_removal" in terms) == is_whole
    weights = params.loss_weights.model_dump(by_alias=True)
    total = sum(weight * terms[f"loss_{name}"].item() for name, weight in weights.items() if weight > 0)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)


def test_a_batch_with_every_token_erased_has_nothing_to_find_and_a_finite_loss(state: TrainState) -> None:
    terms = terms_of(state, random_batch(1.0))
    assert terms["loss_global"] == 0
    assert terms["accuracy_decomposition"] == terms["accuracy_composition"] == 0
    assert torch.isfinite(terms["loss"])


def test_erased_tokens_are_not_pooled(state: TrainState) -> None:
    batch = random_batch(0.0)
    erased = batch.fine_shown.clone()
    erased[:, ::2] = 0.5
    with_erased = terms_of(state, replace(batch, fine_shown=erased))["loss_global"]
    assert with_erased != terms_of(state, batch)["loss_global"]
    assert torch.isfinite(with_erased)


def test_the_removal_term_is_the_same_for_tokens_a_thousand_times_as_short() -> None:
    state, batch = state_of(REMOVAL), random_batch(0.3)
    before = terms_of(state, batch, REMOVAL)["loss_removal"]
    for network in (state.student, state.teacher):
        network.backbone.register_forward_hook(lambda _, __, tokens: 1e-3 * tokens)
    assert 0 < totals_on(state, batch, REMOVAL, GRID.t).teacher_energy < 1
    assert terms_of(state, batch, REMOVAL)["loss_removal"].item() == pytest.approx(before.item(), rel=1e-4)
