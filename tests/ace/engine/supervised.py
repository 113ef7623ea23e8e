"""A supervised training by the engine, as small as can be: a classifier of drawn points, no student and no teacher.

`run` is given FOLDER and OPTIONS, which are JSON, as a command line.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ace.engine.loop import Journal, finish_training, load_newest
from ace.engine.optimizer import build_optimizer, set_schedule
from ace.engine.params import TrainingParams
from ace.engine.ranks import Ranks, open_ranks
from ace.engine.run import RunIdentity, open_run
from ace.engine.schedules import warmup_cosine
from ace.engine.stop import EXIT_CODE, StoppedError, stop_requests
from ace.engine.training import Hooks, StepOutcome, Training
from ace.models.tensors import write_tensors
from shards.core.errors import UserError
from tests.ace.pretrain.conftest import demo_values

STEPS_PER_EPOCH, BATCH_SIZE = 10, 8


@dataclass(frozen=True)
class Points:
    """Points of the plane and on which side of a circle each lies."""

    inputs: Tensor
    sides: Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.sides)

    def to(self, device: torch.device) -> Self:
        return replace(self, inputs=self.inputs.to(device), sides=self.sides.to(device))


@dataclass
class Classifier:
    """Everything that a run goes on with."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_dict(self, values: dict[str, Any]) -> None:
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.step = values["step"]

    def tensors(self) -> dict[str, Tensor]:
        return self.model.state_dict()


@dataclass(frozen=True)
class SupervisedStep:
    state: Classifier
    learner: nn.Module
    params: TrainingParams
    ranks: Ranks
    pause_s: float

    def __call__(self, batch: Points, *, is_logged: bool, is_stop_wanted: bool) -> StepOutcome:
        time.sleep(self.pause_s)
        state, params = self.state, self.params
        num_steps, warmup = params.epochs * STEPS_PER_EPOCH, round(params.warmup_epochs * STEPS_PER_EPOCH)
        lr = warmup_cosine(params.lr, params.min_lr, state.step, num_steps, warmup)
        set_schedule(state.optimizer, lr=lr, weight_decay=params.weight_decay)
        state.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.learner(batch.inputs), batch.sides)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), params.clip_norm)
        mean, num_stops = self.ranks.sum(
            torch.stack([loss.detach() / self.ranks.world_size, torch.tensor(float(is_stop_wanted))])
        )
        is_finite = math.isfinite(mean) and math.isfinite(norm)
        if is_finite:
            state.optimizer.step()
        state.step += 1
        values = {"loss": mean, "lr": lr, "grad_norm": norm}
        return StepOutcome(
            values=values,
            local_loss=loss.detach(),
            is_finite=is_finite,
            is_overflow=False,
            is_stop_wanted=bool(num_stops > 0),
        )


@dataclass(frozen=True)
class Watched(Hooks):
    """The accuracy on points of its own, after every epoch; warns of a loss that a run must have seen once."""

    state: Classifier
    is_first: bool

    score = "accuracy"

    def is_measured_after(self, num_steps: int) -> bool:
        return num_steps % STEPS_PER_EPOCH == 0

    def measure(self) -> dict[str, float]:
        if not self.is_first:
            return {}
        points = draw(-1, 256)
        with torch.no_grad():
            is_right = self.state.model(points.inputs).argmax(1) == points.sides
        return {"accuracy": float(is_right.float().mean())}

    def warnings(self, row: dict[str, float]) -> list[str]:
        return [f"step {row['step']} was shown"] if row["step"] == 3 else []


def draw(step: int, size: int, *, is_spoiled: bool = False) -> Points:
    """The points of one step, which follow from its number alone."""
    inputs = torch.randn(size, 2, generator=torch.Generator().manual_seed(1000 + step))
    sides = (inputs.square().sum(1) > 1.4).long()
    if is_spoiled:
        inputs = inputs * torch.nan
    return Points(inputs, sides, [f"{step}-{number}" for number in range(size)])


def params_of(options: dict[str, Any]) -> TrainingParams:
    demo = demo_values("pretrain")
    values = {name: demo[name] for name in TrainingParams.model_fields if name in demo}
    values |= {"epochs": 4, "warmup_epochs": 1, "batch_size": BATCH_SIZE, "base_lr": 1.5, "log_every_steps": 1}
    return TrainingParams.from_params(values | {"checkpoint_every_s": 0, "num_workers": 0} | options, "supervised")


def main(folder: Path, options: dict[str, Any]) -> None:
    pause_s, spoiled, stalled = options.pop("pause_s", 0.0), options.pop("spoiled", None), options.pop("stalled", None)
    params = params_of(options)
    with ExitStack() as stack:
        request = stack.enter_context(stop_requests(None))
        ranks = stack.enter_context(open_ranks("cpu"))
        identity = RunIdentity(
            stage="supervised", values={"params": params.model_dump(mode="json"), "code": "1"}
        ).agreed(ranks)
        run = ranks.from_first(
            lambda: stack.enter_context(open_run(identity, folder / "run", accepts_changed_code=False))
        )
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        state = Classifier(model, build_optimizer(model, params))
        if (saved := load_newest(run, params, ranks)) is not None:
            state.load_dict(saved)

        def batches(while_waiting: Callable[[], None]) -> Generator[Points, None, None]:
            size = params.batch_size // ranks.world_size
            for step in range(state.step, params.epochs * STEPS_PER_EPOCH):
                while step == stalled:
                    while_waiting()
                    time.sleep(0.05)
                points = draw(step, params.batch_size, is_spoiled=step == spoiled)
                part = slice(ranks.rank * size, (ranks.rank + 1) * size)
                yield Points(points.inputs[part], points.sides[part], points.keys[part])

        training = Training(
            state=state,
            step=SupervisedStep(state, ranks.averaging(model), params, ranks, pause_s),
            batches=batches,
            num_steps=params.epochs * STEPS_PER_EPOCH,
            steps_per_epoch=STEPS_PER_EPOCH,
            hooks=Watched(state, ranks.is_first),
        )
        finish_training(training, params, identity, run, ranks, Journal(folder / "metrics"), request)
        write_tensors(state.tensors(), folder / f"model-rank{ranks.rank}.safetensors")


def run() -> None:
    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
