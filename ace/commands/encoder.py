"""`encoder add`, `encoder list`: say which encoders are compared, and that dvc.yaml knows them and the tasks."""

import argparse
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any

from ace.commands.options import MODELS, add_architecture_options, assignment
from shards.cli import add_params_options, values_of


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `encoder` to the command line."""
    encoder = commands.add_parser(
        "encoder", help="add an encoder to those that are compared, or list them"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = encoder.add_parser(
        "add",
        help="add an encoder to those that are compared",
        description=cleandoc(encoder_add.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", help="name of the encoder in params, metrics and report")
    command.add_argument(
        "--model",
        type=Path,
        metavar="MODEL",
        help="folder of a model, or the name of a shipped one (python -m ace models)",
    )
    command.add_argument(
        "--network",
        choices=["teacher", "student", "best", "untrained"],
        default="teacher",
        help="the network of the model to measure; default: teacher",
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="a file of weights that others trained")
    command.add_argument("--architecture", metavar="NAME", help="architecture of the weights in FILE: timm's name")
    add_architecture_options(command)
    command.add_argument(
        "--train",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="train the encoder: a param that differs from the section `pretrain`, as loss_weights.removal=0; may be "
        "repeated",
    )
    command.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="the params file, or one of a study, to add the encoder to; default: params.yaml",
    )
    command.set_defaults(run=encoder_add)
    command = encoder.add_parser(
        "list",
        help="list the encoders and tasks, and write them into dvc.yaml",
        description=cleandoc(encoder_list.__doc__ or ""),
    )
    add_params_options(command)
    command.set_defaults(run=encoder_list)


def encoder_add(arguments: argparse.Namespace) -> None:
    """Add an encoder to those that are compared; `dvc repro` then makes and measures it, and trains nothing else again.

    Say where its model comes from: --model is a model that is there already, --weights a file of weights that others
    trained, and --train trains it with params that differ from the section `pretrain`:

      python -m ace encoder add student --model models/ace --network student
      python -m ace encoder add swin --weights swin_t.pth --architecture swin_tiny_patch4_window7_224
      python -m ace encoder add no_removal --train loss_weights.removal=0 --train augment.erase.probability=0
      python -m ace encoder add no_global --train loss_weights.global=0 --params studies/phantom/params.yaml
    """
    from ace.embed.opening import EncoderParams
    from ace.encoders import add_encoder
    from ace.published.importing import one_import
    from shards.core.errors import ConfigError
    from shards.delivery.project import Project

    name, folder = arguments.name, MODELS / arguments.name
    sources = {"--model": arguments.model, "--weights": arguments.weights, "--train": arguments.train or None}
    given = [option for option, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"found {' and '.join(given) or 'none'} of --model, --weights and --train; give one of --model MODEL, "
            "--weights FILE with --architecture, and --train KEY=VALUE"
        )
    made_by: dict[str, Any] = {}
    if arguments.train:
        made_by["variants"] = _nested(arguments.train)
    elif arguments.weights is not None:
        if arguments.architecture is None:
            raise ConfigError(f"{arguments.weights}: also give --architecture, timm's name for these weights")
        own = one_import(
            arguments.weights.resolve(),  # a study works in a folder of its own
            arguments.architecture,
            dict(arguments.model_arg),
            in_channels=arguments.channels,
            mean=arguments.mean,
            std=arguments.std,
        )
        made_by["imports"] = own.model_dump(mode="json")
    model = str(folder) if arguments.model is None else _path_of_model(arguments.model)
    encoder = {"model": model, "network": arguments.network}
    project = Project(arguments.params, arguments.params.with_name("dvc.yaml"))
    for line in add_encoder(name, EncoderParams.from_params(encoder, name), project, made_by=made_by):
        print(line)


def _path_of_model(model: Path) -> str:
    """Return a model's folder as dvc.yaml depends on it; of a shipped one it knows no name."""
    from ace.zoo.shipped import ZOO, shipped_names
    from shards.delivery.project import portable

    is_name = not model.is_dir() and str(model) in shipped_names()
    return portable(ZOO / model, Path()) if is_name else str(model)


def _nested(assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Nest values by dotted key in mappings."""
    nested: dict[str, Any] = {}
    for path, value in assignments:
        *parents, key = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return nested


def encoder_list(arguments: argparse.Namespace) -> None:
    """Print the encoders of the params file, and make the stages of dvc.yaml that read every encoder depend on them.

    The tasks of the section `finetune` likewise: the report then waits for each, and shows it.
    """
    from ace.config import list_encoders, list_tasks
    from ace.evaluation.params import parse_encoders

    values, dvc = values_of(arguments), arguments.params.with_name("dvc.yaml")
    encoders, tasks = parse_encoders(values.get("encoders"), str(arguments.params)), values.get("finetune") or {}
    for line in (*list_encoders(encoders, dvc), *list_tasks(tasks, dvc)):
        print(line)
    for name, encoder in encoders.items():
        print(f"{name}: {encoder.network} of {encoder.model}")
    for name, batch in tasks.items():
        print(f"task {name}: trained and measured on {batch}")
