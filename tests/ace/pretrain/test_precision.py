"""Half precision is for the networks alone: pooling, matching and monitors read what they return in full."""

import numpy as np
import pytest
import torch

from ace.data.batches import CropPairItem, PairBatch, collate
from ace.engine.ranks import ALONE, Ranks
from ace.models.networks import StudentOutputs, TeacherOutputs, overlap_mean
from ace.pretrain.state import TrainState
from shards.core.grid import CropPair, Scale
from shards.core.normalisation import Normalisation
from tests.ace.pretrain.steps import GRID, NUM_SAMPLES, fresh_state, step_on, without_removal
from tests.ace.pretrain.synthetic import pair_batch
from tests.oracles import losses as oracle
from tests.oracles import targets

CPU = torch.device("cpu")
HALF = ["bf16", "fp16"]


def state_of_similar_tokens(precision: str, ranks: Ranks = ALONE) -> TrainState:
    """Networks whose tokens are alike: 16 of them with a mean cosine of 0.998, as a large one's hundreds at 0.96."""
    state = fresh_state(ranks, precision=precision, **without_removal())
    with torch.no_grad():
        state.student.backbone.model.norm.bias += 20.0
    state.teacher.update(state.student, momentum=0.0)
    return state


def batch_of_equal_crops() -> PairBatch:
    """Crop pairs of k = l = 1 whose two crops are the same pixels at the same place: every token matches itself."""
    rng, spec = np.random.default_rng(0), GRID.spec
    shown = np.ones((spec.t, spec.t), dtype=np.float32)
    items = []
    for number in range(NUM_SAMPLES):
        crop = rng.integers(0, 256, (spec.crop_px, spec.crop_px), dtype=np.uint8)
        pair = CropPair(jitter=(0.0, 0.0, 1.0), coarse=(2, 3), fine=(2, 3), k=1, l=1)
        items.append(
            CropPairItem(
                coarse=crop,
                fine=crop,
                pair=pair,
                normalisation=Normalisation.of(0.5, 0.25),
                key=str(number),
                coarse_shown=shown,
                fine_shown=shown,
            )
        )
    return collate(items)


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_tokens_that_are_alike_find_themselves_in_every_precision(precision: str) -> None:
    state = state_of_similar_tokens(precision)
    with torch.no_grad():
        crop = batch_of_equal_crops().whole()[0]
        tokens = torch.nn.functional.normalize(state.teacher.backbone(crop).flatten(1, 2), dim=-1)
    assert 0.99 < (tokens @ tokens.mT).mean() < 0.999
    values = step_on(state, batch_of_equal_crops(), precision=precision, **without_removal()).values
    assert values["accuracy_decomposition"] == 1.0
    assert values["accuracy_composition"] == 1.0


@pytest.mark.parametrize("precision", HALF)
def test_matching_terms_are_those_of_the_networks_outputs_in_float64(precision: str) -> None:
    state = state_of_similar_tokens(precision)
    batch = pair_batch(GRID.spec, Scale(2, 2, 1.0), np.random.default_rng(5), size=NUM_SAMPLES).to(CPU)
    students: list[StudentOutputs] = []
    teachers: list[TeacherOutputs] = []
    state.student.register_forward_hook(lambda *call: students.append(call[-1]))
    state.teacher.register_forward_hook(lambda *call: teachers.append(call[-1]))
    values = step_on(state, batch, precision=precision, **without_removal()).values
    for name, taught, learned, target_of, alpha in (
        ("decomposition", teachers[0].fine_tokens, students[0].decomposed, targets.decomposition_target, 0.9),
        ("composition", teachers[0].coarse_tokens, students[0].composed, targets.composition_target, 0.9),
    ):
        rows, cols = (tokens.detach().double().numpy() for tokens in (taught, learned))
        origins = zip(batch.coarse_origin.tolist(), batch.fine_origin.tolist(), strict=True)
        target = np.stack([target_of(tuple(coarse), tuple(fine), GRID.t, 2, 2) for coarse, fine in origins])
        loss = oracle.matching_loss(rows, cols, target, np.ones_like(target), 10.0, -5.0, alpha)
        assert values[f"loss_{name}"].item() == pytest.approx(loss, rel=1e-5)
        is_matched = target.max(-1) == 1
        is_found = (rows @ cols.transpose(0, 2, 1)).argmax(-1) == target.argmax(-1)
        assert values[f"accuracy_{name}"].item() == pytest.approx(is_found[is_matched].mean(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooled_tokens_are_the_mean_of_the_backbones_in_full_precision(dtype: torch.dtype) -> None:
    state = state_of_similar_tokens("fp32")
    batch = batch_of_equal_crops()
    inside = torch.rand(NUM_SAMPLES, GRID.t**2, generator=torch.Generator().manual_seed(0)) > 0.4
    with torch.no_grad(), torch.autocast("cpu", dtype):
        tokens = state.teacher.backbone(batch.whole()[0])
        pooled = overlap_mean(tokens, inside)
        features = state.teacher(batch.whole(), [inside, inside], is_pair=True).features
        composed = state.student.composers["2x2"](tokens)
    exact = tokens.double()
    means = [of_sample.flatten(0, 1)[mask].mean(0) for of_sample, mask in zip(exact, inside, strict=True)]
    torch.testing.assert_close(pooled.double(), torch.stack(means), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(features[:NUM_SAMPLES].double(), exact.mean((1, 2)), atol=1e-6, rtol=1e-6)
    blocks = exact.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    torch.testing.assert_close(composed.double(), blocks, atol=1e-6, rtol=1e-6)
