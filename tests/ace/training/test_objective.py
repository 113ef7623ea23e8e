from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.data.batches import CropPairItem, PairBatch, collate
from ace.models.encoder import default_device
from ace.training.objective import StepResult, compute_loss, count_valid
from ace.training.pretrain import build_state
from ace.training.state import TrainState
from shards.grid import draw_crop_pair
from tests.ace.training.conftest import tiny_grid, tiny_params
from tests.oracles import losses
from tests.oracles import targets as oracle

GRID = tiny_grid(n=10, t=4)
PARAMS = tiny_params(batch_size=4)


@pytest.fixture(scope="module")
def state() -> TrainState:
    torch.manual_seed(0)
    return build_state(PARAMS, GRID, default_device())


def random_batch(share_erased: float) -> PairBatch:
    rng, spec = np.random.default_rng(5), GRID.spec
    items = []
    for number in range(4):
        crops = rng.integers(0, 256, (2, spec.crop_px, spec.crop_px), dtype=np.uint8)
        visible = rng.random((2, spec.t, spec.t)) >= share_erased
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        items.append(CropPairItem(*crops, pair, 0.5, 0.25, f"noise-{number}", *visible))
    return collate(items).to(default_device())


def result_of(state: TrainState, batch: PairBatch) -> StepResult:
    return compute_loss(
        state.student.eval(),
        state.teacher,
        batch,
        state.center,
        PARAMS,
        t=GRID.t,
        teacher_temperature=0.04,
        logit_scales=state.student,
        num_valid=count_valid(batch, GRID.t),
    )


@pytest.mark.parametrize("share_erased", [0.0, 0.3])
def test_matching_terms_agree_with_the_oracle_also_where_tokens_are_erased(
    state: TrainState, share_erased: float
) -> None:
    batch, t = random_batch(share_erased), GRID.t
    student, everywhere = state.student.eval(), torch.ones(4, t * t, dtype=torch.bool, device=default_device())
    crops = batch.normalised_coarse(), batch.normalised_fine()
    with torch.no_grad():
        ours = student(*crops, everywhere, everywhere, k=2, l=2)
    theirs = state.teacher(*crops, everywhere, everywhere)
    expected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"decomposition": [], "composition": []}
    for i in range(4):
        coarse, fine = (tuple(origins[i].tolist()) for origins in (batch.coarse_origin, batch.fine_origin))
        coarse_erased, fine_erased = (~v[i].cpu().numpy() for v in (batch.coarse_visible, batch.fine_visible))
        parts_erased = np.kron(coarse_erased.reshape(t, t), np.ones((2, 2))).ravel() > 0
        wholes_erased = np.array(
            [fine_erased.reshape(t, t)[r : r + 2, c : c + 2].mean() >= 0.5 for r in (0, 2) for c in (0, 2)]
        )
        target = oracle.decomposition_target(coarse, fine, t, 2, 2)
        expected["decomposition"].append(oracle.with_erased(target, fine_erased, parts_erased))
        target = oracle.composition_target(coarse, fine, t, 2, 2)
        expected["composition"].append(oracle.with_erased(target, coarse_erased, wholes_erased))
    terms = result_of(state, batch).terms
    for name, teacher_tokens, student_tokens in (
        ("decomposition", theirs.fine_tokens, ours.decomposed),
        ("composition", theirs.coarse_tokens, ours.composed),
    ):
        scale, bias = (value.item() for value in getattr(student, f"{name}_logits")())
        alpha = getattr(PARAMS.matching_loss, f"alpha_{name}")
        tokens = teacher_tokens.double().cpu().numpy(), student_tokens.double().cpu().numpy()
        target, known = (np.stack(arrays) for arrays in zip(*expected[name], strict=True))
        value = losses.matching_loss(*tokens, target, known, scale, bias, alpha)
        assert terms[f"loss_{name}"].item() == pytest.approx(value, rel=1e-5)


def test_a_batch_with_every_token_erased_has_nothing_to_find_and_a_finite_loss(state: TrainState) -> None:
    terms = result_of(state, random_batch(1.0)).terms
    assert terms["loss_global"] == 0
    assert terms["accuracy_decomposition"] == terms["accuracy_composition"] == 0
    assert torch.isfinite(terms["loss"])


def test_erased_tokens_are_not_pooled(state: TrainState) -> None:
    batch = random_batch(0.0)
    erased = batch.fine_visible.clone()
    erased[:, ::2] = False
    with_erased = result_of(state, replace(batch, fine_visible=erased)).terms["loss_global"]
    assert with_erased != result_of(state, batch).terms["loss_global"]
    assert torch.isfinite(with_erased)
