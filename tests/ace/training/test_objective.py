from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.data.batches import PairBatch
from ace.models.encoder import default_device
from ace.training.pretrain import build_state
from ace.training.state import TrainState
from shards.grid import Scale
from tests.ace.training.conftest import tiny_grid, tiny_params
from tests.ace.training.synthetic import loss_on, pair_batch
from tests.oracles import losses, overlap
from tests.oracles import targets as oracle

SCALES = [(1, 1), (1, 2), (2, 1), (2, 2)]
GRID = tiny_grid(n=10, t=4, min_overlap=0.3, scales=[{"k": k, "l": l, "weight": 1.0} for k, l in SCALES])
PARAMS = tiny_params(batch_size=4)


@pytest.fixture(scope="module")
def state() -> TrainState:
    torch.manual_seed(0)
    state = build_state(PARAMS, GRID, default_device())
    state.student.eval()
    return state


def random_batch(share_erased: float, k: int = 2, l: int = 2) -> PairBatch:
    return pair_batch(GRID.spec, Scale(k, l, 1.0), np.random.default_rng(5), share_erased=share_erased)


def terms_of(state: TrainState, batch: PairBatch) -> dict[str, torch.Tensor]:
    return loss_on(state, batch, PARAMS, GRID.t).terms


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


@pytest.mark.parametrize(("k", "l"), SCALES)
@pytest.mark.parametrize("share_erased", [0.0, 0.3])
def test_all_terms_agree_with_the_oracle_also_where_tokens_are_erased(
    state: TrainState, share_erased: float, k: int, l: int
) -> None:
    batch, t = random_batch(share_erased, k, l), GRID.t
    matches: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"decomposition": [], "composition": []}
    pooled: dict[str, list[np.ndarray]] = {"coarse": [], "fine": []}
    for i in range(4):
        origins = tuple(tuple(origins[i].tolist()) for origins in (batch.coarse_origin, batch.fine_origin))
        coarse_erased, fine_erased = (~v[i].cpu().numpy() for v in (batch.coarse_visible, batch.fine_visible))
        fine_inside, coarse_inside = overlap.overlap_masks(*origins, t, k, l)
        pooled["coarse"].append(coarse_inside & ~coarse_erased)
        pooled["fine"].append(fine_inside & ~fine_erased)
        parts_erased = np.kron(coarse_erased.reshape(t, t), np.ones((k, l))).ravel() > 0
        blocks = [fine_erased.reshape(t, t)[r : r + k, c : c + l] for r in range(0, t, k) for c in range(0, t, l)]
        wholes_erased = np.array([block.mean() >= 0.5 for block in blocks])
        target = oracle.decomposition_target(*origins, t, k, l)
        matches["decomposition"].append(oracle.with_erased(target, fine_erased, parts_erased))
        target = oracle.composition_target(*origins, t, k, l)
        matches["composition"].append(oracle.with_erased(target, coarse_erased, wholes_erased))

    crops = [batch.normalised_coarse(), batch.normalised_fine()]
    masks = {which: torch.from_numpy(np.stack(rows)).to(default_device()) for which, rows in pooled.items()}
    with torch.no_grad():
        ours = state.student(crops, [masks["coarse"], masks["fine"]], (k, l))
    theirs = state.teacher(crops, [masks["coarse"], masks["fine"]], is_pair=True)
    terms = terms_of(state, batch)
    for name, teacher_tokens, student_tokens in (
        ("decomposition", theirs.fine_tokens, ours.decomposed),
        ("composition", theirs.coarse_tokens, ours.composed),
    ):
        scale, bias = (value.item() for value in getattr(state.student, f"{name}_logits")())
        alpha = getattr(PARAMS.matching_loss, f"alpha_{name}")
        target, known = (np.stack(arrays) for arrays in zip(*matches[name], strict=True))
        value = losses.matching_loss(double(teacher_tokens), double(student_tokens), target, known, scale, bias, alpha)
        assert terms[f"loss_{name}"].item() == pytest.approx(value, rel=1e-5)
    valid = (masks["coarse"].any(1) & masks["fine"].any(1)).cpu().numpy()
    logits = [*double(ours.logits), *double(theirs.logits)]
    temperature = PARAMS.global_loss.student_temperature
    total, count = losses.global_consistency(*logits, valid, double(state.center), temperature, 0.04)
    assert terms["loss_global"].item() == pytest.approx(total / count, rel=1e-5)
    weights = PARAMS.loss_weights.model_dump(by_alias=True)
    total = sum(weight * terms[f"loss_{name}"].item() for name, weight in weights.items())
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)


def test_a_batch_with_every_token_erased_has_nothing_to_find_and_a_finite_loss(state: TrainState) -> None:
    terms = terms_of(state, random_batch(1.0))
    assert terms["loss_global"] == 0
    assert terms["accuracy_decomposition"] == terms["accuracy_composition"] == 0
    assert torch.isfinite(terms["loss"])


def test_erased_tokens_are_not_pooled(state: TrainState) -> None:
    batch = random_batch(0.0)
    erased = batch.fine_visible.clone()
    erased[:, ::2] = False
    with_erased = terms_of(state, replace(batch, fine_visible=erased))["loss_global"]
    assert with_erased != terms_of(state, batch)["loss_global"]
    assert torch.isfinite(with_erased)
