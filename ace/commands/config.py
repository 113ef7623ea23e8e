"""`config check`, `config use`, `config migrate`: check and rewrite the params file."""

import argparse
from pathlib import Path

from shards.cli import add_params_options, values_of


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `config` to the command line."""
    config = commands.add_parser(
        "config", help="check the params file, choose a named configuration, or migrate an earlier project"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = config.add_parser(
        "check", help="check params.yaml, batches and dvc.yaml", description=config_check.__doc__
    )
    add_params_options(command)
    command.set_defaults(run=config_check)
    command = config.add_parser("use", help="write configs/NAME.yaml to params.yaml", description=config_use.__doc__)
    command.add_argument("name", metavar="NAME", help="name of a configuration, as smoke for configs/smoke.yaml")
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )
    command.set_defaults(run=config_use)
    command = config.add_parser(
        "migrate", help="rewrite a project of an earlier version for this one", description=config_migrate.__doc__
    )
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )
    command.set_defaults(run=config_migrate)


def config_check(arguments: argparse.Namespace) -> None:
    """Check params.yaml, the files of its batches and dvc.yaml before any work; prints nothing if all is well."""
    from ace.config import Config, check_config, check_graph
    from shards.delivery.batches import read_batches
    from shards.format.exclusion import read_exclusion

    config = Config.from_params(values_of(arguments), str(arguments.params))
    check_config(config, read_batches(arguments.params, config.model_dump(), config.used_batches))
    check_graph(config, arguments.params.parent / "dvc.yaml")
    for name in config.used_batches:
        read_exclusion(name, arguments.params.parent)


def config_use(arguments: argparse.Namespace) -> None:
    """Write configs/NAME.yaml to params.yaml, and say what changed.

    Comments stay, and so do `batches` and `mix`. Batches that had the settings of params.yaml get the new ones.
    """
    from ace.config import use

    for change in use(arguments.name, arguments.params) or [f"{arguments.params} is '{arguments.name}' already"]:
        print(change)


def config_migrate(arguments: argparse.Namespace) -> None:
    """Rewrite the files of a project of an earlier version for this one.

    Batches that params.yaml held become files in batches/, and encoders and properties get sections of their own.
    Shards stay as they are: `dvc commit --force shard` records them under the new files.
    """
    from ace.config import migrate

    for line in migrate(arguments.params) or [f"{arguments.params} is of this version already"]:
        print(line)
