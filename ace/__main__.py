"""`python -m ace`: pretrain, import, measure, fine-tune, embed with, export and publish encoders; report, configure."""

import argparse
import sys

from ace.commands import (
    config,
    deliveries,
    encoder,
    evaluation,
    imports,
    inference,
    models,
    ops,
    report,
    retraining,
    study,
    training,
    withdrawal,
)
from shards.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    """Build the command line of `python -m ace`."""
    parser = argparse.ArgumentParser(prog="python -m ace", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (
        training,
        evaluation,
        report,
        imports,
        inference,
        models,
        encoder,
        study,
        deliveries,
        retraining,
        ops,
        withdrawal,
        config,
    ):
        module.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser()))
