"""One training step on a batch with gaps, alone or as one of several processes; what it did is written to a file."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace.data.batches import CropPairItem, PairBatch, collate
from ace.training.pretrain import build_state
from ace.training.ranks import ALONE, Ranks, open_ranks
from ace.training.state import TrainState
from ace.training.step import StepOutcome, train_step
from shards.grid import draw_crop_pair
from tests.ace.training.conftest import tiny_grid, tiny_params

GRID = tiny_grid(n=10, t=4)
NUM_SAMPLES = 8


def settings(**changes: Any) -> dict[str, Any]:
    """No stochastic depth, and no clipping, so that gradients stay as they are reduced."""
    backbone = tiny_params().backbone.model_dump() | {"drop_path": 0.0}
    return {"backbone": backbone, "batch_size": NUM_SAMPLES, "clip_norm": 1e9, **changes}


def batch_with_gaps() -> PairBatch:
    """Random crops with erased tokens; some samples have no visible overlap, more of them in the second half."""
    rng, spec = np.random.default_rng(5), GRID.spec
    items = []
    for number in range(NUM_SAMPLES):
        crops = rng.integers(0, 256, (2, spec.crop_px, spec.crop_px), dtype=np.uint8)
        visible = rng.random((2, spec.t, spec.t)) >= (1.0 if number in (1, 4, 6) else 0.2)
        pair = draw_crop_pair(spec, spec.scales[0], rng)
        items.append(CropPairItem(*crops, pair, 0.5, 0.25, f"noise-{number}", *visible))
    return collate(items)


def fresh_state(ranks: Ranks = ALONE, **changes: Any) -> TrainState:
    torch.manual_seed(0)
    return build_state(tiny_params(**settings(**changes)), GRID, ranks.device)


def step_on(state: TrainState, batch: PairBatch, ranks: Ranks = ALONE, **changes: Any) -> StepOutcome:
    params = tiny_params(**settings(**changes))
    learner = ranks.averaging(state.student).train()
    return train_step(state, learner, batch, params, t=GRID.t, steps_per_epoch=10, ranks=ranks)


def record(state: TrainState, outcome: StepOutcome) -> dict[str, Any]:
    """Gradients, weights after the step, teacher, centre and logged terms by name."""
    return {
        "gradients": {name: p.grad.clone() for name, p in state.student.named_parameters() if p.grad is not None},
        "student": dict(state.student.state_dict()),
        "teacher": dict(state.teacher.state_dict()),
        "center": state.center,
        "terms": {name: torch.as_tensor(value).float() for name, value in outcome.values.items()},
    }


def main(folder: Path, changes: dict[str, Any]) -> None:
    """Run by itself or as a process of torchrun: this rank's part of the batch."""
    with open_ranks() as ranks:
        state = fresh_state(ranks, **changes)
        part = batch_with_gaps().split(ranks.world_size)[ranks.rank].to(ranks.device)
        outcome = step_on(state, part, ranks, **changes)
        torch.save(record(state, outcome), folder / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
