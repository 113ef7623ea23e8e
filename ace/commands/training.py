"""`pretrain`, `variant`, `finetune`: train encoders, in runs that can be stopped and go on."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace.commands.evaluation import measured_of, with_folders
from ace.commands.launcher import launch
from ace.commands.options import MODEL, MODELS, add_shards_option, positive
from shards.cli import add_params_options, values_of

if TYPE_CHECKING:
    from ace.engine.run import RunOptions
    from ace.engine.stop import StopRequest

TRAINING, VARIANTS = Path("metrics/pretrain"), Path("metrics/variants")
FINETUNED, TASKS = Path("data/finetuned"), Path("metrics/finetune")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pretrain`, `variant` and `finetune` to the command line."""
    command = commands.add_parser("pretrain", help="train the encoder", description=pretrain.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.add_argument(
        "--out", type=Path, default=MODEL, metavar="DIR", help=f"folder that the model is written to; default: {MODEL}"
    )
    command.add_argument(
        "--metrics",
        type=Path,
        default=TRAINING,
        metavar="DIR",
        help=f"folder that DVCLive writes the training's metrics to; default: {TRAINING}",
    )
    _add_run_options(command, "pretrain.device of the params file")
    command.set_defaults(run=pretrain)

    command = commands.add_parser("variant", help="train an encoder to compare with", description=variant.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="NAME", help="name of the training in the section `variants`")
    add_shards_option(command)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder that the model is written to; default: {MODELS}/NAME"
    )
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="DIR",
        help=f"folder that DVCLive writes the training's metrics to; default: {VARIANTS}/NAME",
    )
    _add_run_options(command, "pretrain.device of the params file, unless the variant has its own")
    command.set_defaults(run=variant)

    command = commands.add_parser("finetune", help="train encoders on a task's labels", description=finetune.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="TASK", help="the file configs/tasks/TASK.yaml")
    add_shards_option(command)
    command.add_argument("--batch", metavar="NAME", help="another shard set than the task's file names")
    command.add_argument("--out", type=Path, metavar="DIR", help=f"default: {FINETUNED}/TASK")
    command.add_argument("--metrics", type=Path, metavar="FILE", help=f"default: {TASKS}/TASK.json")
    _add_run_options(command, "training.device of the task")
    command.set_defaults(run=finetune)


def _add_run_options(command: argparse.ArgumentParser, device: str) -> None:
    """Add the options of every training; `device` names the parameter that its own device stands in."""
    command.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="DIR",
        help="folder for checkpoints and log; a run that was begun there goes on, and is refused if its inputs were "
        "others. Default: a folder in scratch that is named after all inputs and removed once the model is finished",
    )
    command.add_argument(
        "--accept-changed-code",
        action="store_true",
        help="go on with the run in --run although code or library versions have changed since it was begun",
    )
    command.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="NAME",
        help="a logger besides metrics.jsonl and DVCLive: `tensorboard`, or your own `package.module:factory`; may be "
        "repeated",
    )
    command.add_argument(
        "--device",
        metavar="DEVICE",
        help=f"auto, cpu, cuda, or for a single process one device, as cuda:1; default: {device}",
    )
    command.add_argument(
        "--time-limit",
        type=positive(float),
        metavar="MINUTES",
        help="save a checkpoint and end with exit code 75 after so many minutes; default: no limit",
    )


def pretrain(arguments: argparse.Namespace) -> None:
    """Train student and EMA teacher on the shards of every batch.

    Several processes train together when a launcher starts them, which $ACE_LAUNCHER names: `torchrun --nproc-per-node
    8`; or give torchrun --nproc-per-node 8 -m -- ace pretrain yourself. A killed run goes on at its last checkpoint
    when the same command is given again. On SIGTERM, SIGUSR1, Ctrl-C or at the time limit, the running step is
    finished, a checkpoint is saved, and the command ends with exit code 75.
    """
    launch()
    with _stop_requests(arguments) as request:
        values = values_of(arguments)
        sections = {"pretrain": values.get("pretrain"), "grid": values.get("grid"), "mix": values.get("mix")}
        _train(arguments, sections, arguments.out, arguments.metrics, request)


def variant(arguments: argparse.Namespace) -> None:
    """Train one item of the section `variants`: as `pretrain` does, with the params that the item changes.

    It is started by $ACE_LAUNCHER, killed, stopped and resumed like `pretrain`.
    """
    launch()
    with _stop_requests(arguments) as request:
        from ace.config import merged, naming
        from shards.core.errors import ConfigError

        values = values_of(arguments)
        variants, name = values.get("variants") or {}, arguments.name
        if name not in variants:
            raise ConfigError(f"{arguments.params}: variants has no '{name}'; it has {', '.join(variants) or 'none'}")
        own = merged(values.get("pretrain") or {}, variants[name] or {})
        sections = {"pretrain": own, "grid": values.get("grid"), "mix": values.get("mix")}
        with naming(f"variants.{name}"):
            _train(arguments, sections, arguments.out or MODELS / name, arguments.metrics or VARIANTS / name, request)


def _train(
    arguments: argparse.Namespace, sections: Mapping[str, Any], out: Path, metrics: Path, request: "StopRequest"
) -> None:
    """Train by these sections of the params file."""
    from ace.pretrain.params import PretrainParams
    from ace.pretrain.pretrain import pretrain
    from shards.core.params import GridParams, parse_mix
    from shards.runtime.atomic import clear_when_full
    from shards.runtime.scratch import scratch_root

    with clear_when_full(arguments.run_dir or scratch_root(), out.parent, metrics):
        pretrain(
            PretrainParams.from_params(sections["pretrain"], f"{arguments.params}: pretrain"),
            GridParams.from_params(sections["grid"], f"{arguments.params}: grid"),
            parse_mix(sections["mix"], f"{arguments.params}: mix"),
            shards_root=arguments.shards,
            out=out,
            metrics_dir=metrics,
            request=request,
            options=_run_options(arguments),
            project=arguments.params.parent,
        )


def finetune(arguments: argparse.Namespace) -> None:
    """Train and measure every encoder of params.yaml on a task of configs/tasks, with one budget for all.

    Each training goes on at its last checkpoint after a kill; SIGTERM, SIGUSR1, Ctrl-C and the time limit let the
    running step finish, save, and end with exit code 75: the same command goes on from there. A finished result is
    kept while all that decides it stays.
    """
    with _stop_requests(arguments) as request:
        from ace.downstream.finetune import finetune
        from ace.downstream.registry import read_task
        from ace.evaluation.params import parse_encoders

        values = values_of(arguments)
        task = read_task(arguments.name, arguments.params.parent, arguments.batch)
        finetune(
            arguments.name,
            task,
            with_folders(parse_encoders(values.get("encoders"), str(arguments.params))),
            shards_root=arguments.shards,
            out=arguments.out or FINETUNED / arguments.name,
            metrics=arguments.metrics or TASKS / f"{arguments.name}.json",
            request=request,
            measured=measured_of(arguments, values, task.params.batch),
            options=_run_options(arguments),
            project=arguments.params.parent,
        )


@contextmanager
def _stop_requests(arguments: argparse.Namespace) -> "Iterator[StopRequest]":
    """Listen for signals and the time limit, and end with exit code 75 if one of them ended what is inside.

    Inside are imports too: to import and to build a network takes long enough to be preempted in.
    """
    from ace.engine.stop import EXIT_CODE, StoppedError, stop_requests

    try:
        with stop_requests(None if arguments.time_limit is None else 60 * arguments.time_limit) as request:
            yield request
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_CODE)


def _run_options(arguments: argparse.Namespace) -> "RunOptions":
    from ace.engine.run import RunOptions

    return RunOptions(
        run_dir=arguments.run_dir,
        accepts_changed_code=arguments.accept_changed_code,
        loggers=arguments.logger,
        device=arguments.device,
    )
