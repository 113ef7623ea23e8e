"""One training step on a batch with gaps, alone or as one of several processes; what it did is written to a file.

`run` is given FOLDER CHANGES BATCH as a command line, the changes as JSON and the batch by its name.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace.data.batches import PairBatch, collate
from ace.engine.ranks import ALONE, Ranks, open_ranks
from ace.engine.training import StepOutcome
from ace.pretrain.pretrain import build_state
from ace.pretrain.state import TrainState
from shards.core.grid import draw_crop_pair
from tests.ace.pretrain.conftest import tiny_grid, tiny_params
from tests.ace.pretrain.synthetic import draw_shown, noise_item, step_of, with_blackened, with_tissue

GRID = tiny_grid(n=10, t=4)
NUM_SAMPLES = 8


def settings(**changes: Any) -> dict[str, Any]:
    """No stochastic depth, and no clipping, so that gradients stay as they are reduced; removal weighs as others do."""
    values = tiny_params().model_dump(by_alias=True)
    backbone, weights = values["backbone"] | {"drop_path": 0.0}, values["loss_weights"] | {"removal": 0.5}
    return {
        "backbone": backbone,
        "loss_weights": weights,
        "batch_size": NUM_SAMPLES,
        "clip_norm": 1e9,
        **changes,
    }


def without_removal() -> dict[str, Any]:
    """What switches the removal term off in `settings`."""
    return {"loss_weights": settings()["loss_weights"] | {"removal": 0.0}}


def batch_with_gaps() -> PairBatch:
    """Random crops with erased tokens; some samples have no visible overlap, more of them in the second half."""
    return _batch([1.0 if number in (1, 4, 6) else 0.2 for number in range(NUM_SAMPLES)])


def batch_erased_in_one_half() -> PairBatch:
    """Random crops, of which nothing is erased in the first half and much in the second."""
    return _batch([0.0 if number < NUM_SAMPLES // 2 else 0.6 for number in range(NUM_SAMPLES)])


def _batch(shares_erased: list[float]) -> PairBatch:
    rng, spec = np.random.default_rng(16), GRID.spec
    items = []
    for number, share_erased in enumerate(shares_erased):
        crops = rng.integers(0, 256, (2, spec.crop_px, spec.crop_px), dtype=np.uint8)
        shown = draw_shown(rng, 2, spec.t, share_erased)
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        items.append(noise_item(number, crops, pair, shown))
    return with_blackened(collate(items))


def batch_with_tissue() -> PairBatch:
    """Random crops of which much is erased; some show their partner's pixels there."""
    return with_tissue(_batch([0.4] * NUM_SAMPLES), np.random.default_rng(3))


def batch_of_one_valid_sample() -> PairBatch:
    """Random crops that are erased but for the last pair: a rank or a micro-batch may have nothing to pool."""
    return _batch([1.0] * (NUM_SAMPLES - 1) + [0.0])


BATCHES = {
    "gaps": batch_with_gaps,
    "erased in one half": batch_erased_in_one_half,
    "tissue": batch_with_tissue,
    "one valid": batch_of_one_valid_sample,
}


def fresh_state(ranks: Ranks = ALONE, **changes: Any) -> TrainState:
    torch.manual_seed(0)
    return build_state(tiny_params(**settings(**changes)), GRID, ranks.device)


def step_on(
    state: TrainState,
    batch: PairBatch,
    ranks: Ranks = ALONE,
    *,
    is_logged: bool = True,
    is_stop_wanted: bool = False,
    **changes: Any,
) -> StepOutcome:
    params = tiny_params(**settings(**changes))
    learner = ranks.averaging(state.student).train()
    step = step_of(state, params, GRID.t, learner=learner, ranks=ranks)
    return step(batch, is_logged=is_logged, is_stop_wanted=is_stop_wanted)


def record(state: TrainState, outcome: StepOutcome) -> dict[str, Any]:
    """Gradients, weights after the step, teacher, centre and logged terms by name."""
    return {
        "gradients": {name: p.grad.clone() for name, p in state.student.named_parameters() if p.grad is not None},
        "student": dict(state.student.state_dict()),
        "teacher": dict(state.teacher.state_dict()),
        "center": state.center,
        "terms": {name: torch.as_tensor(value).float() for name, value in outcome.values.items()},
    }


def run() -> None:
    """Take this process's part of the batch, as one that was started by itself or with others."""
    folder, changes, batch = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    with open_ranks() as ranks:
        state = fresh_state(ranks, **changes)
        part = BATCHES[batch]().split(ranks.world_size)[ranks.rank].to(ranks.device)
        outcome = step_on(state, part, ranks, **changes)
        torch.save(record(state, outcome), folder / f"rank{ranks.rank}.pt")


def run_with(environment: dict[str, str], *arguments: str) -> None:
    """`run` in a process that a launcher started."""
    os.environ.update(environment)
    sys.argv[1:] = arguments
    run()
